"""Files and folders as documents: where things stand, and what cannot be read."""

from pathlib import Path
from typing import Final

import pytest

from controlplane.adapters.doctor.documents import FILE_BYTES_MAX, Diagnosed, read_documents
from controlplane.autoscaler.doctor.diagnose import diagnose, understand
from controlplane.kernel.errors import InvalidError

CORPUS: Final = Path(__file__).parent / "corpus"

HPA: Final = """\
apiVersion: autoscaling/v2beta2
kind: HorizontalPodAutoscaler
metadata: {name: a}
spec: {scaleTargetRef: {kind: Deployment, name: a}, minReplicas: 1, maxReplicas: 4}
"""


def diagnosed(*paths: Path) -> tuple[Diagnosed, ...]:
    folder = read_documents(paths)
    return folder.ordered(diagnose(understand([one.document for one in folder.documents])))


def places(*paths: Path) -> list[tuple[str, int, int]]:
    return [(one.finding.rule.id, one.line, one.column) for one in diagnosed(*paths)]


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_several_documents_keep_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, f"# first\n{HPA}---\n# nothing\n---\n{HPA.replace('name: a', 'name: b')}")
    assert places(path) == [("api-removed", 2, 13), ("api-removed", 9, 13)]


def test_objects_of_a_list_are_documents(tmp_path: Path) -> None:
    inner = "".join(f"    {line}\n" for line in HPA.splitlines())
    path = write(tmp_path, f"apiVersion: v1\nkind: List\nitems:\n  -\n{inner}")
    assert places(path) == [("api-removed", 5, 17)]


def test_text_in_a_document_keeps_its_lines() -> None:
    found = {one.finding.rule.id: one for one in diagnosed(CORPUS / "broken" / "ray-defaults")}
    renamed = found["ray-setting-renamed"]
    line = (CORPUS / "broken" / "ray-defaults" / "rayservice.yaml").read_text().splitlines()[renamed.line - 1]
    assert line[renamed.column - 1 :].startswith("target_num_ongoing_requests_per_replica:")


def test_quoted_text_in_a_document_is_placed_as_a_whole(tmp_path: Path) -> None:
    config = "rules: [{seriesQuery: 'vllm:gpu_cache_usage_perc', name: {as: usage}}]"
    path = write(tmp_path, f'kind: ConfigMap\ndata:\n  config.yaml: "{config}"\n')
    assert places(path) == [("metric-vanished", 3, 16)]


def test_files_are_read_once_and_in_order(tmp_path: Path) -> None:
    second, first = write(tmp_path, HPA, "b.yaml"), write(tmp_path, HPA.replace("name: a", "name: c"), "a.yml")
    write(tmp_path, "not: yaml: at all", "notes.txt")
    folder = read_documents([second, tmp_path])
    assert [one.document.source for one in folder.documents] == [str(second), str(first)]
    assert folder.files == 2


def test_a_template_in_a_folder_is_left_aside_and_named_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, HPA)
    template = write(tmp_path, "{{- if .Values.on }}\nkind: X\n{{- end }}\n", "t.yaml")
    assert any("helm template" in note for note in read_documents([tmp_path]).notes)
    with pytest.raises(InvalidError, match="helm template"):
        read_documents([template])


def test_a_merge_key_is_said_to_be_left_aside(tmp_path: Path) -> None:
    folder = read_documents([write(tmp_path, "a: &x {b: 1}\nc: {<<: *x, d: 2}\n")])
    assert len(folder.notes) == 1
    assert "merge key" in folder.notes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"#" * (FILE_BYTES_MAX + 1), "more than"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match=said):
        read_documents([path])


def test_nothing_to_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no such file"):
        read_documents([tmp_path / "absent.yaml"])
    with pytest.raises(InvalidError, match="a folder without YAML files"):
        read_documents([tmp_path])
