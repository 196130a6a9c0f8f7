"""The commands that take a trained module elsewhere: `export` and `serve`. Options only; the work is imported when one
is called.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rpo_kit.errors import KitError
from rpo_kit.runs import DEFAULT_RUN, Run, existing_run


def add_serving(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_export(commands)
    _add_serve(commands)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "write the trained reflection module, or its RL stage, in the form of another program"
    exported = commands.add_parser("export", help=about, description=about)
    exported.add_argument("--run", default=DEFAULT_RUN, help="the run (default: demo)")
    exported.add_argument("--stage", choices=("sft", "rl"), help="the stage whose adapter is exported (default: rl)")
    about = (
        "the module (docs/export.md): adapter (LoRA), merged (safetensors), gguf (llama.cpp), ollama (Modelfile), "
        "vllm (LoRA, command); verl: the RL stage for many GPUs (data, reward, model, launch script; docs/scale.md)"
    )
    forms = ("adapter", "merged", "gguf", "ollama", "vllm", "verl")
    exported.add_argument("--to", choices=forms, required=True, help=about)
    exported.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to (default: exports/STAGE-FORM in the run's folder)"
    )
    about = (
        "how weights are stored: f32 (default), bf16, f16 for merged; f16 (default), q8_0, bf16, f32 for gguf, ollama"
    )
    exported.add_argument("--dtype", choices=("f32", "f16", "bf16", "q8_0"), help=about)
    about = "what other machines call the base model, if the run's is a folder of this one: ORGANIZATION/MODEL"
    exported.add_argument("--base-name", metavar="NAME", help=about)
    exported.add_argument("--force", action="store_true", help="replace an export that was made from something else")
    exported.set_defaults(command=_export)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "serve the personalizer as an OpenAI-compatible endpoint in front of the base model"
    served = commands.add_parser("serve", help=about, description=about)
    served.add_argument("--run", default=DEFAULT_RUN, help="the trained run (default: demo)")
    about = "the stage that the model `rpo` stands for (default: rl); a request can name another"
    served.add_argument("--stage", choices=("untrained", "sft", "rl"), default="rl", help=about)
    served.add_argument("--base", metavar="MODEL", help="another base model than the run's; recorded answers need one")
    about = "folder with one USER.json per user: a JSON list of LaMP items; without it, uploads are kept in memory"
    served.add_argument("--profiles", type=Path, metavar="FOLDER", help=about)
    served.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1; any other needs a key in RPO_SERVE_KEY)",
    )
    served.add_argument("--port", type=int, default=8765, help="port to listen on (default: 8765)")
    about = "how many waiting requests are answered together by models in this process (default: 8; 1: none)"
    served.add_argument("--batch", type=int, default=8, metavar="N", help=about)
    about = "print the token with which USER may use and upload their own profile, and nobody else's, and exit"
    served.add_argument("--token", metavar="USER", help=about)
    served.set_defaults(command=_serve)


def _export(options: argparse.Namespace) -> None:
    run = existing_run(options.run)
    if options.to == "verl":
        _export_verl(run, options)
        return
    from rpo_kit.serving.export import export

    stage = options.stage or "rl"
    export(run, options.to, stage, options.out, options.dtype, options.base_name, options.force)


def _export_verl(run: Run, options: argparse.Namespace) -> None:
    from rpo_kit.serving.verl import export_verl

    given = [name for name in ("stage", "dtype", "base_name") if getattr(options, name)]
    if given:
        raise KitError(f"--{given[0].replace('_', '-')} has no effect on --to verl: leave it out.")
    folder = (options.out or run.folder / "exports" / options.to).expanduser().resolve()
    print("written:", *export_verl(run, folder, options.force), sep="\n  ")


def _serve(options: argparse.Namespace) -> None:
    if options.token is not None:
        from rpo_kit.serving.access import token_from_environment

        print(token_from_environment(options.token))
        return
    from rpo_kit.serving.server import serve

    run = existing_run(options.run)
    serve(run, options.stage, options.profiles, options.host, options.port, options.base, options.batch)
