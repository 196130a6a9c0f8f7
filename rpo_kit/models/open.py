"""Open the model that a setting such as `base` or `synthesis.teacher` names.

    local:smollm2, local:HUB-ID-OR-FOLDER          in this process
    openai:gpt-4o-mini                             OpenAI, or the server in OPENAI_BASE_URL; key from OPENAI_API_KEY
    http://localhost:8000/v1#my-model              any other server; no key is sent
    https://openrouter.ai/api/v1#org/model@MY_KEY  the same, with the key from the environment variable MY_KEY

`openai:MODEL` limits answers with `max_completion_tokens`, URLs with `max_tokens`: OpenAI's newer models reject the
second, and some servers ignore the first (so name those by their URL). APIs other than OpenAI's are not supported.
Recorded answers (`file:PREDICTIONS.json`) are not a model: `prepare` reads them, and nothing can be asked of them.

    open_chat("openai:gpt-4o-mini").complete([[{"role": "user", "content": "Say hello."}]], max_new_tokens=8)
    # [Completion(text='Hello!', finished=True, prompt_tokens=10, new_tokens=2, failure=None)]
"""

from __future__ import annotations

from rpo_kit.errors import KitError
from rpo_kit.model_spec import parse_spec, recorded_files
from rpo_kit.models.chat import Chat
from rpo_kit.presets import EndpointSettings
from rpo_kit.runs import Run, runs_root

ANSWERS = "answers.sqlite"  # beside the runs: the answers of endpoints, shared by all runs
ACCOUNT = "spent.sqlite"  # in the run folder: what the run has spent


def open_chat(
    spec: str, max_seq_length: int = 1024, settings: EndpointSettings | None = None, run: Run | None = None
) -> Chat:
    """The model that `spec` names.

    The cost of an endpoint is charged to `run`; without a run, the limits apply to the returned object alone.

    Raises:
        KitError: `spec` does not name a model (the message lists the forms) or names recorded answers, its key is not
            set, or its address, a proxy variable, a certificate file or a store cannot be used.
    """
    kind, _, name = spec.strip().partition(":")
    if kind == "local" and name:
        from rpo_kit.models.local import LocalChat, load_base  # torch takes seconds to import; endpoints do not need it

        return LocalChat(load_base(name, max_seq_length), spec)
    if recorded_files(spec):
        raise KitError(
            f"{spec!r} holds recorded answers, which cannot answer new queries, and does not name a model: write "
            "local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL in Personalizer.of(run, base=…) or serve --base."
        )
    endpoint = parse_spec(spec)
    if endpoint is None:
        raise KitError(
            f"{spec!r} does not name a model: write local:NAME, openai:MODEL, or http://HOST:PORT/v1#MODEL (with "
            "@VARIABLE after it if the server needs a key)."
        )
    from rpo_kit.models.cache import open_answers, open_database
    from rpo_kit.models.endpoint import EndpointChat

    payer = run.part_of or run if run else None
    folder = payer.folder.parent if payer else runs_root()
    account = open_database(payer.folder / ACCOUNT) if payer else None
    return EndpointChat(endpoint, settings, open_answers(folder / ANSWERS), account)


def check_spec(spec: str, settings: EndpointSettings | None = None) -> None:
    """Check that the model can be opened, without loading it or sending a request.

    Raises:
        KitError: a folder holds no model, or an endpoint's key, address, proxy, certificates or prices are wrong.
    """
    kind, _, name = spec.strip().partition(":")
    if kind == "local":
        from rpo_kit.models.local import model_path

        if name != "smollm2":  # which would be converted here
            model_path(name)
        return
    endpoint = parse_spec(spec)
    if endpoint:
        from rpo_kit.models.endpoint import EndpointChat

        EndpointChat(endpoint, settings)


def open_chat_for(run: Run, spec: str) -> Chat:
    """The model for a stage of `run`, with the run's settings; costs are charged to the run."""
    return open_chat(spec, run.preset.reflection.max_seq_length, run.preset.endpoint, run)
