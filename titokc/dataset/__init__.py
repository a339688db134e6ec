"""Data sets of pictures -> data sets of tokens, and back: `titokc tokenize`.

`sources` finds shards of pictures, `sinks` writes and reads files of tokens, `job` makes one of the other, and `local`
and `ray` share the shards among processes, of this machine or of a cluster.
"""
