"""Continuous batching as vLLM's V1 scheduler does it, in virtual time: state in, one step out, no clock inside.

A step gives one token to every decoding sequence and spends what is left of the token budget on prefill chunks, first
of running prompts, then of waiting ones in order of arrival. What a decoding sequence needs next (a KV block, its end)
is known in advance, so a step costs in proportion to what changes in it, not to the number of sequences: decoding 256
sequences for one step is as cheap as decoding one. State is therefore mutable here, and only here.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from controlplane.simulation.engine.kv_blocks import BlockPool
from controlplane.simulation.engine.sequence import Sequence, SequencePhase, Step
from controlplane.simulation.engine.timing import EngineProfile

KV_UNBOUNDED_BLOCKS: Final = 1 << 40
"""Stands for "keeps no KV cache": never used up, and its usage rounds to nothing."""


BLOCK_TOKENS: Final = 16
"""Tokens per KV block: vLLM's default on CUDA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What bounds a batch. The token budget's default is vLLM 0.33's on an H100 server."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_blocks: int = KV_UNBOUNDED_BLOCKS
    block_tokens: int = BLOCK_TOKENS
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        assert self.max_num_batched_tokens >= self.max_num_seqs, "every decoding sequence gets a token in each step"

    @classmethod
    def of(cls, profile: EngineProfile, *, max_num_batched_tokens: int = 8192) -> "SchedulerLimits":
        blocks = profile.kv_tokens // BLOCK_TOKENS if profile.kv_tokens else KV_UNBOUNDED_BLOCKS
        return cls(
            max_num_seqs=profile.max_num_seqs,
            max_num_batched_tokens=max(max_num_batched_tokens, profile.max_num_seqs),
            kv_blocks=max(1, blocks),
            prefix_caching=profile.kv_tokens > 0,
        )


class Scheduler:
    """The state of one engine. Deterministic: no clock, no randomness."""

    def __init__(self, profile: EngineProfile, limits: SchedulerLimits) -> None:
        self.profile = profile
        self.limits = limits
        self.time_scale = 1.0
        """Seconds of step time are multiplied by this (1 / speed, times a slowness fault)."""
        self.steps = 0
        self._pool = BlockPool(limits.kv_blocks)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        """By id(), in order of admission: the last is the youngest."""
        self._prefilling: dict[int, Sequence] = {}
        self._decoding = 0
        self._context_tokens = 0
        """Sum over decoding sequences of prompt and generated tokens."""
        self._grow_due: dict[int, list[Sequence]] = {}
        self._finish_due: dict[int, list[Sequence]] = {}

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def kv_blocks_used(self) -> int:
        return self._pool.used

    @property
    def kv_usage(self) -> float:
        """0..1, as vLLM's kv_cache_usage_perc: idle prefix blocks count as free."""
        return self._pool.used / self._pool.blocks_total

    @property
    def prefill_backlog_tokens(self) -> int:
        """Prompt tokens of all requests that have not finished their prefill."""
        return sum(sequence.prompt_tokens for sequence in (*self._waiting, *self._prefilling.values()))

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Could it ever run, alone? The last token generated needs no KV of its own."""
        return self._blocks_for(max(prompt_tokens, prompt_tokens + output_tokens - 1)) <= self.limits.kv_blocks

    def generated(self, sequence: Sequence) -> int:
        """Tokens generated for it by now."""
        if sequence.phase is SequencePhase.DECODE:
            return sequence.generated_base + self.steps - sequence.decoding_since
        return sequence.generated_base

    def submit(self, sequence: Sequence) -> None:
        """Queue it. The caller checked `fits`."""
        assert sequence.phase is SequencePhase.WAITING, "a sequence is submitted once"
        assert sequence.prompt_tokens > 0, "a prompt has at least one token"
        assert self.fits(sequence.prompt_tokens, sequence.output_tokens), "a sequence fits into the KV cache alone"
        self._waiting.append(sequence)

    def abort(self, sequence: Sequence, now: float) -> bool:
        """Take it out wherever it is. False when it had ended already."""
        if sequence.phase is SequencePhase.DONE:
            return False
        if sequence.phase is SequencePhase.WAITING:
            self._waiting.remove(sequence)
        else:
            self._leave_batch(sequence)
        sequence.phase = SequencePhase.DONE
        sequence.finished_at = now
        return True

    def forget_prefixes(self) -> None:
        self._pool.forget_idle()

    def step(self, now: float, until: float | None = None) -> Step | None:
        """One step that starts at `now`; None when there is nothing to do.

        With `until`, following steps that only decode are merged in as long as each starts before `until` and no
        sequence ends or grows in them (and so none that waits can come in). Merging changes no result, only the
        number of calls.
        """
        if not self._running and not self._waiting:
            return None
        out = Step(
            started_at=now,
            ends_at=now,
            count=1,
            decoded=0,
            prefill_tokens=0,
            admitted=[],
            first_tokens=[],
            resumed=[],
            finished=[],
            preempted=[],
        )
        due = self._grow_due.pop(self.steps, None)
        if due is not None:
            self._grow(due, out)
        chunks = self._plan_prefill(out) if self._prefilling or self._waiting else []
        out.decoded = self._decoding
        assert out.decoded or chunks, "a busy engine always has something to do: its oldest sequence"
        self._run_batch(chunks, out, until)
        due = self._finish_due.pop(self.steps, None)
        if due is not None:
            for sequence in due:
                if sequence.finish_at == self.steps and sequence.phase is SequencePhase.DECODE:
                    self._finish(sequence, out)
        if chunks:
            self._land_prefill(chunks, out)
        return out

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def _grow(self, due: list[Sequence], out: Step) -> None:
        """One more block for each sequence whose last is full; where none is left, the youngest gives way."""
        for sequence in due:
            if sequence.grow_at != self.steps:
                continue
            while sequence.phase is SequencePhase.DECODE and not self._pool.acquire((), 1):
                self._preempt(next(reversed(self._running.values())), out)
            if sequence.phase is SequencePhase.DECODE:
                sequence.nameless_blocks += 1
                self._set_growth(sequence, self.steps + self.limits.block_tokens)

    def _set_growth(self, sequence: Sequence, at_step: int) -> None:
        sequence.grow_at = at_step
        if at_step < sequence.finish_at:
            self._grow_due.setdefault(at_step, []).append(sequence)

    def _preempt(self, sequence: Sequence, out: Step) -> None:
        """Recompute later: its blocks go, what it generated stays, and it waits at the head of the queue."""
        if sequence.phase is SequencePhase.DECODE:
            sequence.last_token_at = out.started_at
        self._leave_batch(sequence)
        sequence.phase = SequencePhase.WAITING
        sequence.preemptions += 1
        self._waiting.appendleft(sequence)
        out.preempted.append(sequence)

    def _plan_prefill(self, out: Step) -> list[tuple[Sequence, int]]:
        """Chunks for this step. Nothing is admitted in a step that preempted: the room was just found missing."""
        budget = self.limits.max_num_batched_tokens - self._decoding
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self._prefilling.values():
            if budget <= 0:
                break
            chunk = min(sequence.prefill_target - sequence.computed, budget)
            chunks.append((sequence, chunk))
            budget -= chunk
        while budget > 0 and self._waiting and not out.preempted and len(self._running) < self.limits.max_num_seqs:
            sequence = self._waiting[0]
            if not self._admit(sequence, out):
                break
            chunk = min(sequence.prefill_target - sequence.computed, budget)
            chunks.append((sequence, chunk))
            budget -= chunk
        return chunks

    def _admit(self, sequence: Sequence, out: Step) -> bool:
        """Move the head of the queue into the batch with the blocks of its whole prompt, or leave all as it is."""
        target = sequence.prompt_tokens + sequence.generated_base
        hits = 0
        if self.limits.prefix_caching and sequence.prefix_keys:
            # At least one token is always computed: its logits give the next one.
            hits = self._pool.hits(sequence.prefix_keys, (target - 1) // self.limits.block_tokens)
        shared = sequence.prefix_keys[:hits]
        fresh = self._blocks_for(target) - hits
        if not self._pool.acquire(shared, fresh):
            return False
        self._waiting.popleft()
        sequence.shared = list(shared)
        sequence.published = hits
        sequence.nameless_blocks = fresh
        sequence.prefill_target = target
        sequence.computed = hits * self.limits.block_tokens
        sequence.phase = SequencePhase.PREFILL
        if sequence.admitted_at is None:
            sequence.admitted_at = max(out.started_at, sequence.arrived_at)
            sequence.cached_tokens = sequence.computed
            out.admitted.append(sequence)
        self._running[id(sequence)] = sequence
        self._prefilling[id(sequence)] = sequence
        return True

    def _run_batch(self, chunks: list[tuple[Sequence, int]], out: Step, until: float | None) -> None:
        """Let the time pass and count the steps."""
        work_s = 0.0
        for sequence, chunk in chunks:
            work_s += self.profile.prefill_work_s(sequence.computed, chunk)
            out.prefill_tokens += chunk
        decoding = self._decoding
        seconds = self.time_scale * self.profile.step_s(
            decoding=decoding,
            context_tokens=self._context_tokens,
            prefill_work_s=work_s,
            prefilling=bool(chunks),
        )
        ends_at = out.started_at + seconds
        steps = self.steps + 1
        self._context_tokens += decoding
        if until is not None and not chunks and not out.preempted:
            more_s = self.time_scale * self.profile.step_per_context_token_s * decoding
            while ends_at < until and steps not in self._finish_due and steps not in self._grow_due:
                seconds += more_s
                ends_at += seconds
                steps += 1
                self._context_tokens += decoding
        out.count = steps - self.steps
        out.ends_at = ends_at
        self.steps = steps

    def _land_prefill(self, chunks: list[tuple[Sequence, int]], out: Step) -> None:
        for sequence, chunk in chunks:
            sequence.computed += chunk
            self._publish(sequence)
            if sequence.computed == sequence.prefill_target:
                self._first_token(sequence, out)

    def _publish(self, sequence: Sequence) -> None:
        """Offer the prompt blocks that are now whole to whoever comes with the same prefix."""
        if not self.limits.prefix_caching:
            return
        whole = min(sequence.computed // self.limits.block_tokens, len(sequence.prefix_keys))
        for key in sequence.prefix_keys[sequence.published : whole]:
            if self._pool.publish(key):
                sequence.shared.append(key)
                sequence.nameless_blocks -= 1
        sequence.published = max(sequence.published, whole)

    def _first_token(self, sequence: Sequence, out: Step) -> None:
        """The prefill is through: its last logits are a token (unless the request only wants the pooled state)."""
        del self._prefilling[id(sequence)]
        if sequence.output_tokens == 0:
            sequence.first_token_at = sequence.last_token_at = out.ends_at
            self._end(sequence, out)
            return
        sequence.generated_base += 1
        if sequence.first_token_at is None:
            sequence.first_token_at = out.ends_at
            out.first_tokens.append(sequence)
        else:
            out.resumed.append((sequence, out.ends_at - sequence.last_token_at))
        sequence.phase = SequencePhase.DECODE
        sequence.decoding_since = self.steps
        sequence.last_token_at = out.ends_at
        self._decoding += 1
        self._context_tokens += sequence.prompt_tokens + sequence.generated_base
        left = sequence.output_tokens - sequence.generated_base
        sequence.finish_at = self.steps + left
        if left == 0:
            self._finish(sequence, out)
            return
        self._finish_due.setdefault(sequence.finish_at, []).append(sequence)
        capacity = (sequence.nameless_blocks + len(sequence.shared)) * self.limits.block_tokens
        self._set_growth(sequence, self.steps + capacity - sequence.prefill_target)

    def _finish(self, sequence: Sequence, out: Step) -> None:
        sequence.last_token_at = out.ends_at
        self._end(sequence, out)

    def _end(self, sequence: Sequence, out: Step) -> None:
        self._leave_batch(sequence)
        sequence.phase = SequencePhase.DONE
        sequence.finished_at = out.ends_at
        out.finished.append(sequence)

    def _leave_batch(self, sequence: Sequence) -> None:
        """Give its blocks back and take it out of the batch, whatever it was doing there."""
        if sequence.phase is SequencePhase.DECODE:
            generated = self.generated(sequence)
            self._decoding -= 1
            self._context_tokens -= sequence.prompt_tokens + generated
            sequence.generated_base = generated
        del self._running[id(sequence)]
        self._prefilling.pop(id(sequence), None)
        self._pool.release(sequence.shared, sequence.nameless_blocks)
        sequence.shared = []
        sequence.nameless_blocks = 0
        sequence.published = 0
        sequence.computed = 0
        sequence.grow_at = sequence.finish_at = -1
