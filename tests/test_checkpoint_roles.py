"""Checkpoints on a disk of each host, and where another process than 0 is the primary one."""

import json

from checkout import run


def test_every_directory_has_the_state_whichever_process_writes_it(data_dir, tmp_path):
    run(2, "checkpoint_roles.py", data_dir, tmp_path, logs=tmp_path)
    for process in range(2):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found == {
            # Step 2 is lost on process 1, so both have to go back to step 1.
            "a directory each": [True, [2, 1]],
            "process 1 is primary": [True, [2]],
            "process 1 is primary, by v1": [True, []],
        }
    # One process looks at a shared directory, and tells the others.
    looked = [json.loads((tmp_path / f"looked-{process}.json").read_text()) for process in range(2)]
    assert looked[0]["process 1 is primary"] > 10
    assert looked[1]["process 1 is primary"] <= 1  # at the file that process 0 has written
