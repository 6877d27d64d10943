"""What every room uses: tables for notebooks, progress, files."""

import re
from html.parser import HTMLParser

import pytest

import flowsim as fs
from flowsim.base import html, processes
from flowsim.base.files import check_writable, write_text
from flowsim.progress import silent, track

# --- tables ---------------------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Collects the cells, and fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1] += data


def test_a_table_holds_its_text_and_no_markup_of_it():
    text = html.table([["a", "<b>"], ["c", "d & e"]], ["x", "y > 0"], "2 < 3")
    assert Balanced(text).cells == ["2 < 3", "x", "y > 0", "a", "<b>", "c", "d & e"]
    assert "<b>" not in text


def test_rows_can_be_marked_and_named():
    text = html.table([["a", "1"], ["b", "2"]], names=True, marked=[1])
    assert re.findall(r"<tr( style='[^']*')?>", text) == ["", " style='background:#fdd'"]
    assert re.findall(r"<th[^>]*>(.)</th>", text) == ["a", "b"]


def run():
    return fs.simulate(fs.GradientFlow(fs.Parallel()), fs.initial.matched(pairs=4, dim=2), ts=[0.0, 0.1])


def runs():
    flow = fs.GradientFlow(fs.Parallel())
    return fs.sweep(flow, fs.initial.matched(pairs=4, dim=2), {"seed": [0, 1]}, ts=[0.0, 0.1])


@pytest.mark.parametrize(
    "show",
    [
        run,
        runs,
        lambda: fs.observables.report([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], only=["modality_gap"]),
        lambda: fs.claims.run("lemma-3.1", quick=True),
        lambda: fs.check(fs.losses.InfoNCE()),
    ],
)
def test_what_notebooks_show_is_whole(show):
    shown = show()._repr_html_()
    # That of a sweep contains xarray's own, whose tags need no end.
    assert "<table>" in shown or "xr-" in shown
    if "xr-" not in shown:
        Balanced(shown)


# --- progress -------------------------------------------------------------------------------------


def test_track_counts_jobs():
    told = []
    assert list(track("abc", lambda *told_: told.append(told_), "letters")) == ["a", "b", "c"]
    assert told == [("letters", 0, 3), ("letters", 1, 3), ("letters", 2, 3), ("letters", 3, 3)]
    assert list(track([], silent, "nothing")) == []


def work(progress, number):
    progress("half", number, 10, loss=number / 2)
    return number**2


@pytest.mark.parametrize("count", [1, 3])
def test_progress_of_other_processes_is_heard_with_its_numbers(count):
    told = []

    def progress_of(index):
        return lambda *told_, **numbers: told.append((index, told_, numbers))

    found = dict(processes.run([(work, (n,)) for n in range(count)], progress_of))
    assert found == {n: n**2 for n in range(count)}
    assert sorted(told) == [(n, ("half", n, 10), {"loss": n / 2}) for n in range(count)]


# --- files ----------------------------------------------------------------------------------------


def test_a_folder_is_checked_and_left_as_it_was(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    write_text(tmp_path / "file", "γ")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "γ"
    with pytest.raises(fs.FlowsimError, match=r"Cannot write to '.*file/a': '.*file' is a file.* Give another\.$"):
        check_writable(tmp_path / "file" / "a", "Give another.")


def test_the_systems_own_reason_is_given(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(fs.FlowsimError, match=r"Cannot write to .*: Permission denied\. Choose a folder that you may"):
        check_writable(tmp_path)
