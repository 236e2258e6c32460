"""The endpoints that make the engine work, by task."""

import random
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

import orjson

from controlplane.simulation.engine import speech, text, wire
from controlplane.simulation.engine.answers import PooledAnswer, StreamedAnswer, WholeAnswer, usage
from controlplane.simulation.engine.core import EngineCore, Job, Receiver
from controlplane.simulation.engine.embeddings import VectorTable
from controlplane.simulation.engine.families import FinishReason, Rejection
from controlplane.simulation.engine.http_server import Exchange
from controlplane.simulation.engine.options import EngineOptions, Task
from controlplane.simulation.engine.sequence import Sequence as EngineSequence
from controlplane.simulation.engine.text import Prompt
from controlplane.simulation.engine.wire import Refusal, RefusedError, ServedModels, bad_request


class Inference:
    """Parses, admits, and hands requests to the engine. Every method raises RefusedError for what it refuses."""

    def __init__(self, options: EngineOptions, core: EngineCore) -> None:
        self._options = options
        self._core = core
        self._models = ServedModels(
            names=options.served_names,
            adapters=options.adapters,
            max_model_len=options.max_model_len,
            block_tokens=options.limits.block_tokens,
            seed=options.seed,
            prefix_caching=options.limits.prefix_caching,
        )
        self._vectors = VectorTable(options.embedding_dimensions) if options.task is Task.EMBED else None
        self._ids = random.Random(options.own_seed ^ time.time_ns())
        self._model_list = _model_list(options)

    def routes(self) -> dict[str, Callable[[Exchange], None]]:
        """As vLLM: only the endpoints that fit the model's task are there."""
        match self._options.task:
            case Task.GENERATE:
                return {"/v1/completions": self._complete, "/v1/chat/completions": self._chat}
            case Task.EMBED:
                return {"/v1/embeddings": self._embed}
            case Task.TRANSCRIBE:
                return {"/v1/audio/transcriptions": self._transcribe}
            case Task.SPEAK:
                return {"/v1/audio/speech": self._speak}

    def models(self, exchange: Exchange) -> None:
        exchange.respond(200, self._model_list)

    def tokenize(self, exchange: Exchange) -> None:
        fields = wire.parse_object(exchange.body)
        self._models.check(fields.get("model"))
        if "messages" in fields:
            prompt = text.chat_text(wire.chat_messages(fields))
        elif isinstance(fields.get("prompt"), str):
            prompt = fields["prompt"]
        else:
            raise RefusedError(bad_request("prompt must be a string, or messages a list", "prompt"))
        ids = text.token_ids(prompt)
        answer = {"count": len(ids), "max_model_len": self._options.max_model_len, "tokens": ids, "token_strs": None}
        exchange.respond(200, orjson.dumps(answer))

    def overflow(self) -> Refusal:
        """Counts, and makes, one refusal by a full queue. No Retry-After, as with vLLM."""
        self._core.tally.rejected[Rejection.REQUESTS] += 1
        return _overflow("The engine's queue is full (max_num_queued_reqs).")

    def _complete(self, exchange: Exchange) -> None:
        self._generate(exchange, chat=False)

    def _chat(self, exchange: Exchange) -> None:
        self._generate(exchange, chat=True)

    def _generate(self, exchange: Exchange, *, chat: bool) -> None:
        request = wire.parse_generation(exchange.body, chat=chat, models=self._models)
        self._admit(1)
        answer_id = self._answer_id(exchange, "chatcmpl" if chat else "cmpl")
        answer: StreamedAnswer | WholeAnswer
        if request.stream:
            answer = StreamedAnswer(exchange, request, answer_id, self._options.stream_interval)
        else:
            answer = WholeAnswer(exchange, request, answer_id)
        self._submit(exchange, [request.prompt], request.output_tokens, answer, request.reason, request.max_tokens)

    def _embed(self, exchange: Exchange) -> None:
        fields = wire.parse_object(exchange.body)
        model = self._models.check(fields.get("model"))
        prompts = wire.parse_embedding_inputs(fields, model, self._models)
        encoding = fields.get("encoding_format", "float")
        if encoding not in {"float", "base64"}:
            raise RefusedError(bad_request(f"encoding_format must be float or base64, found {encoding!r}"))
        assert self._vectors is not None, "the route exists for this task only"
        vector = self._vectors.json if encoding == "float" else self._vectors.base64
        self._admit(len(prompts))

        def body(_: int) -> tuple[bytes, str]:
            data = b",".join(
                b'{"index":%d,"object":"embedding","embedding":%b}' % (index, vector(prompt.fingerprint))
                for index, prompt in enumerate(prompts)
            )
            tokens = sum(prompt.tokens for prompt in prompts)
            head = b'{"id":"%b","object":"list","created":%d,"model":%b,"data":[' % (
                self._answer_id(exchange, "embd").encode(),
                int(time.time()),
                orjson.dumps(model),
            )
            return head + data + b'],"usage":' + orjson.dumps(usage(tokens, 0)) + b"}", "application/json"

        self._submit(exchange, prompts, 0, PooledAnswer(exchange, len(prompts), body), FinishReason.STOP, 0)

    def _transcribe(self, exchange: Exchange) -> None:
        form = speech.parse_form(exchange.headers.get(b"content-type", b""), exchange.body)
        if form is None or "file" not in form:
            raise RefusedError(bad_request("expected multipart/form-data with a part named file", "file"))
        self._models.check(_form_text(form, "model", ""))
        response_format = _form_text(form, "response_format", "json")
        if response_format not in {"json", "text", "verbose_json"}:
            message = f"response_format must be json, text or verbose_json, found {response_format!r}"
            raise RefusedError(bad_request(message, "response_format"))
        content = form["file"].content
        seconds = speech.audio_seconds(content)
        positions, tokens = speech.transcription_tokens(seconds)
        self._check_length(positions, tokens)
        fingerprint = text.fingerprint_of(content)
        self._admit(1)

        def body(generated: int) -> tuple[bytes, str]:
            words = text.filler(fingerprint, 0, generated)
            return speech.transcription_body(words, seconds, response_format)

        prompt = Prompt(tokens=positions, prefix_keys=(), fingerprint=fingerprint)
        self._submit(exchange, [prompt], tokens, PooledAnswer(exchange, 1, body), FinishReason.STOP, tokens)

    def _speak(self, exchange: Exchange) -> None:
        fields = wire.parse_object(exchange.body)
        model = self._models.check(fields.get("model"))
        said = fields.get("input")
        response_format = fields.get("response_format", "wav")
        if not isinstance(said, str) or not said:
            raise RefusedError(bad_request("input must be a non-empty string", "input"))
        if response_format not in {"wav", "pcm"}:
            message = f"response_format must be wav or pcm, found {response_format!r}"
            raise RefusedError(bad_request(message, "response_format"))
        prompt = wire.parse_prompt(said, model, self._models)
        seconds = speech.speech_seconds(said)
        tokens = speech.speech_tokens(seconds)
        self._check_length(prompt.tokens, tokens)
        self._admit(1)
        wav = response_format == "wav"

        def body(_: int) -> tuple[bytes, str]:
            return speech.silence(seconds, wav=wav), "audio/wav" if wav else "audio/pcm"

        self._submit(exchange, [prompt], tokens, PooledAnswer(exchange, 1, body), FinishReason.STOP, tokens)

    def _submit(
        self,
        exchange: Exchange,
        prompts: Sequence[Prompt],
        output_tokens: int,
        receiver: Receiver,
        reason: FinishReason,
        max_tokens: int,
    ) -> None:
        jobs = [
            Job(
                sequence=EngineSequence(
                    prompt_tokens=prompt.tokens,
                    output_tokens=output_tokens,
                    arrived_at=exchange.started_at,
                    prefix_keys=prompt.prefix_keys,
                ),
                receiver=receiver,
                reason=reason,
                max_tokens=max_tokens,
            )
            for prompt in prompts
        ]

        def gone() -> None:
            for job in jobs:
                self._core.abandon(job)

        exchange.on_disconnect = gone
        for job in jobs:
            self._core.submit(job)

    def _admit(self, requests: int) -> None:
        """Admission control as in vLLM: both limits count what is in the engine, running requests included."""
        options, core = self._options, self._core
        if options.queued_requests_max is not None and core.unfinished + requests > options.queued_requests_max:
            raise RefusedError(self.overflow())
        tokens_max = options.queued_tokens_max
        if tokens_max is not None and core.scheduler.prefill_backlog_tokens >= tokens_max:
            core.tally.rejected[Rejection.TOKENS] += 1
            raise RefusedError(_overflow("Too many prompt tokens are queued (max_num_queued_tokens)."))

    def _check_length(self, prompt_tokens: int, output_tokens: int) -> None:
        if prompt_tokens + output_tokens > self._options.max_model_len:
            message = (
                f"This model's maximum context length is {self._options.max_model_len} tokens. However, your request "
                f"needs {prompt_tokens} input and {output_tokens} output tokens."
            )
            raise RefusedError(bad_request(message, "input_tokens"))

    def _answer_id(self, exchange: Exchange, prefix: str) -> str:
        given = exchange.headers.get(b"x-request-id")
        unique = given.decode("latin-1") if given else f"{self._ids.getrandbits(128):032x}"
        return f"{prefix}-{unique}"


def _overflow(message: str) -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, "ServiceUnavailableError")


def _form_text(form: dict[str, speech.FormPart], name: str, default: str) -> str:
    part = form.get(name)
    return default if part is None else part.content.decode("utf-8", "replace").strip()


def _model_list(options: EngineOptions) -> bytes:
    created = int(time.time())

    def card(name: str, root: str, parent: str | None) -> dict[str, object]:
        permission = {
            "id": f"modelperm-{text.fingerprint_of(name.encode()):032x}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": options.max_model_len,
            "permission": [permission],
        }

    cards = [card(name, options.model, None) for name in options.served_names]
    cards += [card(name, path, options.served_names[0]) for name, path in options.adapters]
    return orjson.dumps({"object": "list", "data": cards})
