"""Which files a command line means and where results go: folders, links, hidden files, pipes, equal names."""

import os

import pytest

from titokc.cli.plan import Naming, find, plan
from titokc.errors import UsageError

NAMING = Naming(frozenset({".png", ".jpg"}), ".tok", frozenset({".tok", ".bin", ".txt"}))


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """Makes empty files of these names."""
    monkeypatch.chdir(tmp_path)

    def touch(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return touch


def planned(inputs, output=None):
    tasks, notes = plan(inputs, output, NAMING)
    assert not [task.problem for task in tasks if task.problem]
    return [str(task.target) for task in tasks], notes


def found(*inputs):
    return [file.name for file in find(inputs, NAMING.suffixes, [])]


class TestWhatIsMeant:
    def test_hidden_files_and_folders_are_left_out(self, touch):
        touch("in/a.png", "in/._a.png", "in/.thumbnails/t.png", "in/sub/.b.jpg", "in/sub/c.jpg")
        assert found("in") == ["in/a.png", "in/sub/c.jpg"]

    def test_links_to_folders_are_followed_each_folder_once(self, touch, tmp_path):
        touch("in/a.png", "in/sub/b.png", "far/c.png", "far/more/d.png")
        (tmp_path / "in" / "0-album").symlink_to(tmp_path / "far")
        (tmp_path / "far" / "more" / "up").symlink_to(tmp_path / "in")
        (tmp_path / "in" / "0-sub").symlink_to("sub")
        assert found("in") == ["in/0-album/c.png", "in/0-album/more/d.png", "in/a.png", "in/sub/b.png"]

    def test_links_to_files_are_files_of_their_own(self, touch, tmp_path):
        touch("in/a.png")
        (tmp_path / "in" / "b.png").symlink_to("a.png")
        (tmp_path / "in" / "c.png").symlink_to("nothing")
        assert found("in") == ["in/a.png", "in/b.png", "in/c.png"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
    @pytest.mark.parametrize("text", ["in", "in/*"])
    def test_pipes_in_folders_are_not_opened(self, touch, tmp_path, text):
        touch("in/a.png")
        os.mkfifo(tmp_path / "in" / "b.png")
        assert found(text) == ["in/a.png"]
        notes = plan(["in"], None, NAMING)[1]
        assert notes == ["in: 1 other file (no regular file) left out"]

    def test_the_same_input_twice_is_one(self, touch, tmp_path):
        touch("in/a.png", "in/b.png")
        (tmp_path / "link").symlink_to("in")
        assert found("in/a.png", "in/a.png", "./in/a.png", str(tmp_path / "in" / "a.png")) == ["in/a.png"]
        assert found("in/b.png", "in", "in/*.png", "link") == ["in/b.png", "in/a.png"]
        assert planned(["in/a.png", "in/a.png"], "x.tok")[0] == ["x.tok"]

    def test_other_suffixes_are_counted(self, touch):
        touch("in/a.png", "in/a.tok", "in/b.HEIC", "in/c.heic", "in/d", "in/.e.heic")
        assert planned(["in"])[1] == ["in: 3 other files (.heic, no suffix) left out"]
        touch("none/b.heic")
        (task,), _ = plan(["none"], None, NAMING)
        assert str(task.problem) == "no file in this folder ends in .jpg, .png; here are 1 other file (.heic)"


class TestNames:
    def test_several_folders_keep_their_names(self, touch, tmp_path, monkeypatch):
        touch("monday/001.png", "tuesday/001.png", "tuesday/x/002.png")
        expected = ["o/monday/001.tok", "o/tuesday/001.tok", "o/tuesday/x/002.tok"]
        assert planned(["monday", "tuesday/"], "o") == (expected, [])
        assert planned(["monday"], "o") == (["o/001.tok"], [])
        monkeypatch.chdir(tmp_path / "monday")
        assert planned([".", "../tuesday"], "o") == (expected, [])

    def test_files_of_one_name_keep_their_folders(self, touch):
        touch("two/monday/001.png", "two/tuesday/001.png", "two/tuesday/002.png", "two/a/x/001.png", "two/b/x/001.png")
        expected = ["o/monday/001.tok", "o/tuesday/001.tok", "o/002.tok"]
        assert planned(["two/[mt]*/*.png"], "o") == (expected, [])
        assert planned(["two/monday/001.png", "two/tuesday/001.png", "two/tuesday/002.png"], "o") == (expected, [])
        assert planned(["two/a/x", "two/b/x"], "o") == (["o/a/x/001.tok", "o/b/x/001.tok"], [])

    def test_files_that_differ_in_their_suffix_keep_it(self, touch):
        touch("in/a.png", "in/a.jpg", "in/b.png")
        targets, notes = planned(["in"], "o")
        assert targets == ["o/a.jpg.tok", "o/a.png.tok", "o/b.tok"]
        assert notes == ["2 results keep their inputs' suffixes, since in/a.jpg and in/a.png differ in nothing else"]
        assert planned(["in"])[0] == ["in/a.jpg.tok", "in/a.png.tok", "in/b.tok"]

    def test_names_that_still_collide_are_refused(self, touch):
        touch("in/a.png", "in/a.jpg", "in/a.png.jpg")
        tasks, _ = plan(["in"], "o", NAMING)
        assert [str(task.problem) for task in tasks if task.problem] == [
            "o/a.png.tok would be the result of in/a.png and in/a.png.jpg"
        ] * 2

    @pytest.mark.parametrize(
        ("inputs", "output", "message"),
        [
            (["a.png"], "", "an empty name"),
            (["a.png", "b.png"], "z.tok", "if z.tok is meant to be one, write z.tok/"),
            (["*.png"], "z.TXT", "write z.TXT/"),
            (["a.png", "b.png"], "a.png", "a.png is a file"),
            (["a.png", "b.png"], "/dev/null", "need a folder"),
            (["a.png", "b.png"], "-", "standard output takes the result of one input"),
            (["a.png", "b.png"], "/dev/stdout", "standard output takes the result of one input"),
        ],
    )
    def test_outputs_that_make_no_sense(self, touch, inputs, output, message):
        touch("a.png", "b.png")
        with pytest.raises(UsageError, match=message):
            plan(inputs, output, NAMING)

    def test_a_folder_may_be_called_so(self, touch):
        touch("a.png", "b.png")
        assert planned(["a.png", "b.png"], "z.tok/")[0] == ["z.tok/a.tok", "z.tok/b.tok"]
        assert planned(["a.png", "b.png"], "out.v1")[0] == ["out.v1/a.tok", "out.v1/b.tok"]
        assert planned(["a.png"], "/dev/stdout")[0] == ["None"]
