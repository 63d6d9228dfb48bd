"""What strangers bring: bad input is refused with one line that names the value and the remedy, quickly and in little
memory. The cases stand in `tests/strangers/`, a file for each part of the library."""

import importlib
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

FILES = sorted(path.stem for path in (Path(__file__).parent / "strangers").glob("[a-z]*.py"))
CASES = [pytest.param(*case, id=f"{name}: {case[0]}") for name in FILES
         for case in importlib.import_module(f"strangers.{name}").CASES]
RAW = (AttributeError, AssertionError, IndexError, KeyError, NameError, RecursionError, StopIteration)
SECONDS, MEGABYTES = 2, 200                                  # of the processor: the machine may be busy


@pytest.fixture
def brought(planted, tmp_path, monkeypatch):
    """The planted problem, an empty folder and `environ(name, value)`."""
    return SimpleNamespace(**vars(planted), folder=tmp_path, environ=monkeypatch.setenv, attribute=monkeypatch.setattr)


@pytest.mark.parametrize(("what", "call", "error", "words"), CASES)
def test_bad_input_is_refused_in_one_line(what, call, error, words, brought):
    """`call(brought)` raises an `error` whose first line matches `words`."""
    assert not issubclass(error, RAW), "an error of this kind says nothing to a stranger"
    peak, start = _peak(), time.process_time()
    with pytest.raises(error) as caught:
        call(brought)
    seconds, grown = time.process_time() - start, _peak() - peak
    first = str(caught.value).partition("\n")[0]
    assert re.search(words, first) and len(first) < 400
    assert seconds < SECONDS and grown < MEGABYTES


def test_there_are_enough_of_them():
    assert len(CASES) >= 60 and len({case.id for case in CASES}) == len(CASES)


def _peak() -> float:
    """The most memory that this process has held since it was last asked, in MB; 0 where the system does not tell."""
    try:
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
        Path("/proc/self/clear_refs").write_text("5")        # begin to count anew
        return peak
    except OSError:
        return 0.0
