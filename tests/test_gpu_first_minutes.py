"""The script for the first minutes on a GPU, at toy size on the CPU."""

import re
import subprocess
import sys

import gpu_first_minutes as first
import pytest
import torch

IN_PROCESS = [name for name in first.STAGES if name != "tests"]         # that one starts pytest


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_stage_runs_at_toy_size_and_says_numbers_beside_their_estimates(name, monkeypatch, capsys):
    monkeypatch.setattr(first, "DRY", True)
    first.STAGES[name][0](torch.device("cpu"))
    said = [line for line in capsys.readouterr().out.splitlines() if "estimated:" in line]
    assert said or name == "bench"
    assert all(re.search(r" -?[\d.]+(e[+-]\d+)? +\S* *estimated: ", line) for line in said)     # noise at toy size


def test_a_stage_that_takes_too_long_or_fails_costs_no_other_one(monkeypatch, capsys):
    calls = []

    def run(command, timeout):
        calls.append((command[3], timeout))
        if command[3] == "steps":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, command[3] == "lanes")

    monkeypatch.setattr(first.subprocess, "run", run)
    assert first.main() == 2
    assert [name for name, _ in calls] == list(first.STAGES)
    assert "2 stages failed: steps (time was up), lanes" in capsys.readouterr().out
    assert first.main("machine") == 0 and calls[-1] == ("machine", first.STAGES["machine"][1])
    with pytest.raises(ValueError, match="there is no stage lane; choose of machine, "):
        first.main("lane")


@pytest.mark.slow
def test_the_dry_run_ends_well():
    done = subprocess.run([sys.executable, first.__file__, "--dry"], capture_output=True, text=True)
    assert done.returncode == 0 and "every stage ran to its end" in done.stdout, done.stdout + done.stderr
