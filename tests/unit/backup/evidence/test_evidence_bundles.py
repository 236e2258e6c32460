"""What a drill proved is signed once, chained, and told apart from anything else by two verifiers."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.adapters.evidence import (
    EvidenceSigner,
    fingerprint,
    newest_evidence,
    read_public_key,
    record_evidence,
    sequence_of,
    verify_bundle,
    verify_chain,
)
from controlplane.domain.recovery import CheckOutcome, Verdict
from controlplane.kernel.errors import ConflictError, RetryableError, TerminalError
from controlplane.recovery.evidence import canonical, evidence_of
from controlplane.testing.effects import START, FakeClock
from tests.unit.backup.bucket import MemoryBucket
from tests.unit.backup.evidence.bundles import (
    OBJECTIVES,
    SOFTWARE,
    make_bundles,
    make_drill,
    make_manifest,
    make_signer,
)
from tools.verify_evidence import chain_problems, problems_of

SCRIPT = Path(__file__).parents[4] / "tools" / "verify_evidence.py"
DEADLINE_S = 60


def alone(tmp_path: Path, bundles: Sequence[tuple[str, bytes]], *options: str) -> "subprocess.CompletedProcess[str]":
    """The stand-alone script, as an auditor runs it: in another folder, isolated from ours."""
    paths = []
    for name, bundle in bundles:
        path = tmp_path / Path(name).name
        path.write_bytes(bundle)
        paths.append(path.name)
    command = [sys.executable, "-I", str(SCRIPT), *paths, *options]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_bundle_verifies_here_and_alone(tmp_path: Path) -> None:
    signer = make_signer()
    bundles = make_bundles(3, signer)
    signer.write_public_key(tmp_path / "evidence.pub")

    answer = alone(tmp_path, bundles, "--public-key", "evidence.pub")

    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"3 bundle(s) verified, signed by {signer.fingerprint}\n"
    assert verify_chain(dict(bundles), read_public_key(tmp_path / "evidence.pub")) == {name: () for name, _ in bundles}


def test_a_bundle_tells_what_an_auditor_asks() -> None:
    content = json.loads(make_bundles(1, make_signer())[0][1])["content"]

    assert content["verdict"]["passed"] is True
    assert content["restored"]["storage_classes"] == ["STANDARD"]
    assert (content["restored"]["fetched_bytes"], content["restored"]["key_id"]) == (1000, "site:0a1b2c3d")
    assert content["restored"]["copy"]["manifest_mac"] == "ab" * 32
    assert content["objectives"] == {
        "achieved_rpo_s": 1.0,
        "achieved_rto_s": 7.95,
        "forecast_rto_s": 12.5,
        "newest_at": (START - timedelta(seconds=1)).isoformat(),
        "rpo_met": True,
        "rpo_s": 5.0,
        "rto_met": True,
        "rto_s": 1800.0,
    }
    assert content["times"]["start_and_replay_s"] == 1.25
    assert content["checks"][0]["sentence"] == "found 20 rows, expected 20"
    assert content["clean_up"]["looked_for_and_not_found"] == ["the folder of the restored copy", "processes in it"]


def test_a_failed_check_or_a_failure_is_no_pass() -> None:
    bad = replace(make_drill(), checks=(CheckOutcome(name="rows", verdict=Verdict.FAILED, sentence="found 0"),))
    for drill in (bad, replace(make_drill(), failure="the store went away")):
        document = evidence_of(drill, None, objectives=OBJECTIVES, previous=None, recorded_at=START, software=SOFTWARE)
        content = document["content"]
        assert isinstance(content, Mapping)
        assert isinstance(content["verdict"], Mapping)
        assert content["verdict"]["passed"] is False


def test_an_objective_that_was_missed_says_so() -> None:
    late = replace(make_drill(), achieved_rpo=timedelta(seconds=6))

    document = evidence_of(
        late, make_manifest(), objectives=OBJECTIVES, previous=None, recorded_at=START, software=SOFTWARE
    )

    assert json.loads(canonical(document))["content"]["objectives"]["rpo_met"] is False


def test_every_flipped_byte_is_refused_by_both() -> None:
    signer = make_signer()
    ((_, bundle),) = make_bundles(1, signer)
    assert verify_bundle(bundle, signer.public_key) == ()
    assert problems_of(bundle, signer.public_key) == []
    for at in range(len(bundle)):
        flipped = bundle[:at] + bytes([bundle[at] ^ (1 << at % 8)]) + bundle[at + 1 :]
        assert verify_bundle(flipped), at
        assert problems_of(flipped, None), at


@pytest.mark.parametrize("kept", [0, 1, 1000, -2, -1])
def test_a_bundle_cut_off(kept: int) -> None:
    ((_, bundle),) = make_bundles(1, make_signer())

    assert verify_bundle(bundle[:kept])
    assert problems_of(bundle[:kept], None)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "[" * 100_000, '{"a": NaN}', "1" * 5000, '"\\ud800"', "\x00", "\xff"]
)
def test_what_is_no_bundle(text: str) -> None:
    assert verify_bundle(text.encode("latin-1"))
    assert problems_of(text.encode("latin-1"), None)


def test_a_section_that_was_changed_is_named() -> None:
    signer = make_signer()
    ((_, bundle),) = make_bundles(1, signer)
    changed = bundle.replace(b'"verify_s": 2.0', b'"verify_s": 1.0')

    assert verify_bundle(changed) == (
        "its section `times` was changed",
        "its signature does not fit: it was changed after it was signed",
    )
    assert problems_of(changed, None)[0] == "section times was changed"


def test_the_same_facts_spelled_otherwise_are_refused() -> None:
    ((_, bundle),) = make_bundles(1, make_signer())

    respelled = json.dumps(json.loads(bundle), sort_keys=True).encode()

    assert verify_bundle(respelled) == (
        "its bytes are not those that were written: spaces, order or spelling were changed",
    )
    assert problems_of(respelled, None) == ["is not canonical JSON: its bytes were changed"]


def test_a_bundle_that_somebody_else_signed_anew_passes_only_without_a_pinned_key(tmp_path: Path) -> None:
    ours, theirs = make_signer(1), make_signer(2)
    forged = make_bundles(1, theirs)
    ours.write_public_key(tmp_path / "evidence.pub")

    assert verify_bundle(forged[0][1]) == ()
    assert verify_bundle(forged[0][1], ours.public_key) == (
        f"is signed by {theirs.fingerprint[:16]}..., expected {ours.fingerprint[:16]}...",
    )
    answer = alone(tmp_path, forged, "--public-key", "evidence.pub")
    assert (answer.returncode, answer.stdout) == (1, "drill-1.json: is signed by another key than the one given\n")


def test_a_bundle_taken_out_of_the_chain(tmp_path: Path) -> None:
    bundles = make_bundles(3, make_signer())
    gap = [bundles[0], bundles[2]]

    assert verify_chain(dict(gap))[bundles[2][0]] == (
        "has number 3 and follows 1 (evidence/drill-1.json): some are missing",
    )
    answer = alone(tmp_path, gap)
    assert (answer.returncode, answer.stdout) == (1, "drill-3.json: number 3 follows number 1 (drill-1.json)\n")
    assert verify_chain(dict(bundles[1:])) == {name: () for name, _ in bundles[1:]}


def test_a_bundle_exchanged_for_another_good_one_breaks_the_chain() -> None:
    signer = make_signer()
    first, second = make_bundles(2, signer)
    other = signer.sign(
        evidence_of(
            make_drill("drill-x"), None, objectives=OBJECTIVES, previous=None, recorded_at=START, software=SOFTWARE
        )
    )

    findings = verify_chain({"evidence/drill-x.json": other, second[0]: second[1]})

    assert findings[second[0]] == (
        "does not follow evidence/drill-x.json: that is not the bundle whose hash it carries",
    )
    assert chain_problems([("x", other), ("second", second[1])]) == ["second: does not carry the hash of x"]
    assert verify_chain({first[0]: first[1], "fork": other})["fork"][0].endswith("the chain is forked")
    assert chain_problems([("a", first[1]), ("b", other)])


def test_recording_makes_a_chain_in_the_bucket_and_once_for_each_drill() -> None:
    clock, signer = FakeClock(), make_signer()
    store, manifest = MemoryBucket(clock=clock), make_manifest()

    recorded = [
        record_evidence(
            store,
            signer,
            make_drill(f"drill-{number}"),
            manifest,
            objectives=OBJECTIVES,
            recorded_at=START,
            software=SOFTWARE,
        )
        for number in (3, 1, 2, 1)
    ]

    assert [one.sequence for one in recorded] == [1, 2, 3, 2]
    assert recorded[3] == recorded[1]
    bundles = {key: store.get(key) for key in store.listed()}
    assert list(bundles) == ["evidence/drill-1.json", "evidence/drill-2.json", "evidence/drill-3.json"]
    assert not any(verify_chain(bundles, signer.public_key).values())
    newest = newest_evidence(store, signer)
    assert newest is not None
    assert (newest.key, newest.sequence) == ("evidence/drill-2.json", 3)


@pytest.mark.parametrize(("number", "applied"), [(1, False), (2, False), (3, False), (4, False), (4, True)])
def test_recording_cut_off_at_any_call_is_done_by_the_next(number: int, applied: bool) -> None:
    signer, store = make_signer(), MemoryBucket()
    record(store, signer, "drill-1")
    store.fail_call(store.calls + number, RetryableError("the answer is lost"), applied=applied)

    with pytest.raises(RetryableError):
        record(store, signer, "drill-2")
    record(store, signer, "drill-2")
    record(store, signer, "drill-3")

    bundles = {key: store.get(key) for key in store.listed()}
    assert [sequence_of(bundle) for bundle in bundles.values()] == [1, 2, 3]
    assert not any(verify_chain(bundles, signer.public_key).values())


def record(store: MemoryBucket, signer: EvidenceSigner, drill: str) -> None:
    record_evidence(
        store, signer, make_drill(drill), make_manifest(), objectives=OBJECTIVES, recorded_at=START, software=SOFTWARE
    )


def test_a_foreign_file_in_the_bucket_neither_stops_nor_joins_the_chain() -> None:
    signer, store = make_signer(), MemoryBucket()
    record(store, signer, "drill-1")
    store.put("evidence/zz.json", b"junk")
    store.put("evidence/forged.json", make_bundles(1, make_signer(2))[0][1])

    record(store, signer, "drill-2")

    assert sequence_of(store.get("evidence/drill-2.json")) == 2
    with pytest.raises(
        ConflictError, match=r"evidence/zz\.json: holds another file than this site's evidence: is no JSON"
    ):
        record(store, signer, "zz")


def test_the_signing_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "evidence.key"

    first = EvidenceSigner.from_file(path)

    assert EvidenceSigner.from_file(path).public_key == first.public_key
    assert first.fingerprint == fingerprint(first.public_key)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(TerminalError, match=r"evidence\.key: found mode 644, expected 600"):
        EvidenceSigner.from_file(path)
