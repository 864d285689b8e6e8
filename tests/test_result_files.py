"""Files of results: known to be writable before the work, and kept if another question was asked before."""

import json
from pathlib import Path

import pytest

from drift_policy.errors import ConfigurationError
from drift_policy.result_files import keep_earlier, require_writable


def test_what_can_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    for path in (tmp_path / "old.json", tmp_path / "new.json", tmp_path / "folder/in/folder/new.json"):
        require_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    impossible = {
        tmp_path: "is a folder",
        tmp_path / "file/scores.json": "cannot be written",
        tmp_path / ("n" * 300): "cannot be written",
        tmp_path / "nul\0": "cannot be written",
        Path("/proc/scores.json"): "cannot be written",
    }
    for path, said in impossible.items():
        with pytest.raises(ConfigurationError, match=rf"{said}.*choose another, output=\.\.\. \."):
            require_writable(path)


@pytest.mark.parametrize("is_folder", [False, True])
def test_results_of_other_settings_are_kept(tmp_path: Path, is_folder: bool) -> None:
    place = tmp_path / ("v1.5" if is_folder else "scores.json")
    manifest = place / "manifest.json" if is_folder else place

    def written(settings: object) -> str | None:
        content = {"settings": settings, "date": "now"}
        kept = keep_earlier(place, manifest, content, ("settings", "data"))
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_text(json.dumps(content | {"date": "another"}))
        return None if kept is None else kept.name

    names = ["v1.5_1", "v1.5_2", "v1.5_3"] if is_folder else ["scores_1.json", "scores_2.json", "scores_3.json"]
    assert [written({"n": (1, 2)}), written({"n": (1, 2)})] == [None, None]
    assert [written({"n": 3}), written({"n": (1, 2)})] == names[:2]
    manifest.write_text("of another program")
    assert written({"n": 3}) == names[2]
    kept = [tmp_path / name / "manifest.json" if is_folder else tmp_path / name for name in names]
    assert [json.loads(path.read_text())["settings"] for path in kept[:2]] == [{"n": [1, 2]}, {"n": 3}]
    assert kept[2].read_text() == "of another program"
