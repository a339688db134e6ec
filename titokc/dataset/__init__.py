"""Data sets of pictures -> data sets of tokens, and back: `titokc tokenize`.

`sources` finds shards of pictures, `sinks` writes and reads files of tokens, `job` makes one of the other, and `local`
shares the shards among processes.
"""
