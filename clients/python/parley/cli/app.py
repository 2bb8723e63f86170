"""The command line: names, options and help of every command. What they do is imported when they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from parley.cli.arguments import hoisted

if TYPE_CHECKING:
    from parley.cli.session import Session

EPILOG = """\b
--server, --estimator, --token and --json work before and after every command.

\b
Environment:
  PARLEY_ORCHESTRATOR  the server (127.0.0.1:7460)
  PARLEY_ESTIMATOR     the estimator (127.0.0.1:7461), for `accuracy` and `history`
  PARLEY_TOKEN         their bearer token; the estimator's own is in PARLEY_ESTIMATOR_TOKEN
  PARLEY_TLS_CA        the certificate authority of a server with TLS
  PARLEY_HOME          where `parley up` keeps logs and data (./var)

\b
Exit codes:
    0  it worked; a watched batch succeeded
    1  the watched batch ended, and not every conversation was made and passed; `verify` found something wrong
    2  wrong usage, or a fault in the spec
    3  not found, not possible in this state, or not allowed
    4  the server, the estimator or the provider can't be reached, or failed
    5  the watched batch is paused: something holds it
  130  interrupted; a batch that was started goes on
"""

app = typer.Typer(
    name="parley",
    help="Makes training conversations in bulk, and says what they cost before a cent is spent.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    # Plain help reads the same on a terminal, in a pipe and in the README.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="its id, as `parley list` shows it")]
SpecPath = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="the spec file")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="may be given many times")]
Provider = Annotated[str, typer.Option(metavar="URL", help="only of this provider, such as https://api.anthropic.com")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="start without a question, whatever it costs")]


def main() -> NoReturn:
    try:
        app(args=hoisted(sys.argv[1:]), prog_name="parley")
    except BrokenPipeError:
        # Whoever read the pipe has enough; what Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    sys.exit(0)


@app.callback()
def options(
    context: typer.Context,
    server: Annotated[str | None, typer.Option(help="host:port of the orchestrator")] = None,
    estimator: Annotated[str | None, typer.Option(help="host:port of the estimator")] = None,
    token: Annotated[str | None, typer.Option(help="bearer token; better in PARLEY_TOKEN")] = None,
    json: Annotated[bool, typer.Option("--json", help="proto3 JSON, one message a line")] = False,
) -> None:
    from parley.cli.output import new_output
    from parley.cli.session import Session

    context.obj = Session(new_output(as_json=json), server, token, estimator)


def run(context: typer.Context, command: Callable[[Session], Coroutine[Any, Any, int]]) -> NoReturn:
    from parley.cli.session import run

    raise typer.Exit(run(context.obj, command))


def run_here(context: typer.Context, command: Callable[[Session], int]) -> NoReturn:
    from parley.cli.session import run_here

    raise typer.Exit(run_here(context.obj, command))


@app.command()
def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="where to write")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
) -> None:
    """Write a first spec that runs as it is.

    Its prompts and a schema for your editor come with it.
    """
    from parley.cli import initializing

    run_here(context, lambda session: initializing.init(session.output, folder, force=force))


@app.command()
def check(
    context: typer.Context, model: Annotated[str, typer.Option(help="the model to try; the server's default")] = ""
) -> None:
    """Prove key, model and limits with one tiny call.

    It costs under a cent, and says so.
    """
    from parley.cli import checking

    run(context, lambda session: checking.check(session, model=model))


@app.command()
def quote(
    context: typer.Context,
    spec: SpecPath,
    prompts: Annotated[int, typer.Option(min=0, max=100, help="filled prompts to show")] = 0,
) -> None:
    """Say what a spec costs and what is wrong with it.

    A dry run: nothing is started. Exit code 2 where the spec can't be made as it is.
    """
    from parley.cli import quoting

    run(context, lambda session: quoting.quote(session, spec, prompts=prompts))


@app.command()
def start(
    context: typer.Context,
    spec: SpecPath,
    yes: Yes = False,
    no_watch: Annotated[bool, typer.Option("--no-watch", help="start it and return")] = False,
    hold_after: Annotated[
        int | None, typer.Option(min=0, help="pause after so many conversations: 3 is a pilot, 0 waits for `resume`")
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD", help="the most that it may cost, such as 5.00")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="calls at a time")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="another seed, another plan")] = None,
    model: Annotated[str | None, typer.Option(help="the model's id")] = None,
    label: Labels = None,
    allow_unquoted: Annotated[
        bool, typer.Option("--allow-unquoted", help="start also while the estimator can't be reached")
    ] = False,
) -> None:
    """Quote a spec, ask, start it and watch it. Ctrl-C stops the watching, never the batch."""
    from parley.cli import starting

    chosen = starting.StartOptions(
        yes=yes,
        watch=not no_watch,
        allow_unquoted=allow_unquoted,
        hold_after=hold_after,
        budget=budget,
        concurrency=concurrency,
        seed=seed,
        model=model,
        labels=label or (),
    )
    run(context, lambda session: starting.start(session, spec, chosen))


@app.command()
def watch(context: typer.Context, batch: Batch) -> None:
    """Follow a batch until it ended or is paused. Leaving never stops it."""
    from parley.cli import watching

    run(context, lambda session: watching.watch(session, batch))


@app.command("list")
def list_(
    context: typer.Context,
    state: Annotated[list[str] | None, typer.Option(help="such as running or paused; may be given many times")] = None,
    owner: Annotated[str, typer.Option(help="only of this owner")] = "",
    label: Labels = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="at most so many, the newest first")] = 100,
) -> None:
    """List batches, the newest first."""
    from parley.cli import batches

    run(
        context,
        lambda session: batches.list_batches(session, states=state or (), owner=owner, labels=label or (), limit=limit),
    )


@app.command()
def show(
    context: typer.Context,
    batch: Batch,
    every: Annotated[bool, typer.Option("--all", help="every conversation, not only those that went wrong")] = False,
) -> None:
    """Show a batch and what went wrong in it."""
    from parley.cli import batches

    run(context, lambda session: batches.show(session, batch, every=every))


@app.command()
def read(
    context: typer.Context,
    batch: Batch,
    number: Annotated[int | None, typer.Argument(min=1, help="which conversation; the first usable one")] = None,
) -> None:
    """Read a conversation."""
    from parley.cli import conversations

    run(context, lambda session: conversations.read(session, batch, number))


@app.command()
def calls(
    context: typer.Context,
    batch: Batch,
    possibly_spent: Annotated[
        bool, typer.Option("--possibly-spent", help="only those whose outcome a crash or a cut connection hid")
    ] = False,
    conversation: Annotated[int | None, typer.Option(min=1, help="only of this conversation")] = None,
) -> None:
    """List the paid calls of a batch: its ledger."""
    from parley.cli import calls

    run(
        context,
        lambda session: calls.calls(session, batch, possibly_spent=possibly_spent, conversation=conversation),
    )


@app.command()
def settle(
    context: typer.Context,
    batch: Batch,
    call: Annotated[list[str] | None, typer.Argument(metavar="CALL", help="as `parley calls` shows it")] = None,
    every: Annotated[bool, typer.Option("--all", help="every possibly spent call of the batch")] = False,
    not_billed: Annotated[bool, typer.Option("--not-billed", help="the provider's bill does not show them")] = False,
    cost: Annotated[str | None, typer.Option(metavar="USD", help="what each of them cost by the bill")] = None,
    note: Annotated[str, typer.Option(help="why, for those who read the ledger later")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="settle --all without a question")] = False,
) -> None:
    """Say what possibly spent calls really cost.

    By the provider's console or bill. Until then they count at the most that they could cost.
    """
    from parley.cli import settling

    chosen = settling.SettleOptions(calls=call or (), every=every, not_billed=not_billed, cost=cost, note=note, yes=yes)
    run(context, lambda session: settling.settle(session, batch, chosen))


@app.command()
def pause(context: typer.Context, batch: Batch) -> None:
    """Let calls in flight end and start no other."""
    from parley.cli import batches

    run(context, lambda session: batches.pause(session, batch))


@app.command()
def resume(context: typer.Context, batch: Batch) -> None:
    """Go on with a paused batch."""
    from parley.cli import batches

    run(context, lambda session: batches.resume(session, batch))


@app.command()
def cancel(context: typer.Context, batch: Batch) -> None:
    """Let calls in flight end, keep what was made, cancel the rest."""
    from parley.cli import batches

    run(context, lambda session: batches.cancel(session, batch))


@app.command()
def retry(
    context: typer.Context,
    batch: Batch,
    tier: Annotated[list[str] | None, typer.Option(help="only of this tier")] = None,
    reason: Annotated[list[str] | None, typer.Option(help="only what failed so, such as refusal")] = None,
    review: Annotated[list[str] | None, typer.Option(help="quarantined or rejected ones")] = None,
) -> None:
    """Make failed and cancelled conversations again.

    Or those that the options name.
    """
    from parley.cli import batches

    run(
        context,
        lambda session: batches.retry(session, batch, tiers=tier or (), reasons=reason or (), reviews=review or ()),
    )


@app.command("set")
def set_(
    context: typer.Context,
    batch: Batch,
    budget: Annotated[str | None, typer.Option(metavar="USD", help="the most that it may cost, or none")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="calls at a time")] = None,
    hold_after: Annotated[str | None, typer.Option(metavar="N", help="pause after so many, or none")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high")] = None,
    name: Annotated[str | None, typer.Option(help="its name for people")] = None,
    label: Labels = None,
) -> None:
    """Change settings of a batch, also while it runs."""
    from parley.cli import batches

    changes = batches.Changes(
        budget=budget, concurrency=concurrency, hold_after=hold_after, priority=priority, name=name, labels=label or ()
    )
    run(context, lambda session: batches.change(session, batch, changes))


@app.command()
def export(
    context: typer.Context,
    batch: Annotated[list[str], typer.Argument(metavar="BATCH...", help="one or several")],
    out: Annotated[Path, typer.Option(help="the folder")] = Path("out"),
    format: Annotated[
        str, typer.Option(help="messages, sharegpt, prompt_completion, bedrock, vertex or parquet")
    ] = "messages",
    validation: Annotated[float, typer.Option(min=0, max=0.99, help="share of validation rows")] = 0.0,
    test: Annotated[float, typer.Option(min=0, max=0.99, help="share of test rows")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same split")] = 0,
    tier: Annotated[list[str] | None, typer.Option(help="only of this tier")] = None,
) -> None:
    """Write dataset files."""
    from parley.cli import exporting

    chosen = exporting.ExportOptions(
        out=out, format=format, validation=validation, test=test, seed=seed, tiers=tier or ()
    )
    run(context, lambda session: exporting.export(session, batch, chosen))


@app.command()
def spend(
    context: typer.Context,
    by: Annotated[list[str] | None, typer.Option(help="day, owner, label, model or batch; may be combined")] = None,
    label: Annotated[str, typer.Option(help="the label to sum by, with --by label")] = "",
    owner: Annotated[str, typer.Option(help="only of this owner")] = "",
    batch: Annotated[str, typer.Option(help="only of this batch")] = "",
) -> None:
    """Sum what was spent, deleted batches included.

    And show how far the daily budgets are used.
    """
    from parley.cli import spending

    run(context, lambda session: spending.spend(session, by=by or (), label=label, owner=owner, batch=batch))


@app.command()
def accuracy(
    context: typer.Context,
    quote: Annotated[
        str | None, typer.Argument(metavar="QUOTE", help="quotes/x or batches/x: what became of that one")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="model, tier or month; may be combined, as in tier,month")
    ] = None,
    since: Annotated[str, typer.Option(metavar="DATE", help="only batches that ended from then on (UTC)")] = "",
    provider: Provider = "",
) -> None:
    """Say how good past quotes were.

    As a table and a plot of the newest batches; or compare one quote with what happened, by cause.
    """
    from parley.cli import accuracy

    run(context, lambda session: accuracy.accuracy(session, quote, by=by or (), since=since, provider=provider))


@app.command()
def history(
    context: typer.Context,
    model: Annotated[list[str] | None, typer.Option(help="only calls of this model; may be given many times")] = None,
    provider: Provider = "",
) -> None:
    """Show what calls took so far, by tier and model.

    Tokens, seconds at real speed, failures, and how far batches differ.
    """
    from parley.cli import history

    run(context, lambda session: history.history(session, models=model or (), provider=provider))


@app.command()
def up(context: typer.Context) -> None:
    """Start both services on this machine.

    And the sandbox where neither ANTHROPIC_API_KEY nor ANTHROPIC_BASE_URL is set. What runs already is left as it is.
    """
    from parley.cli import services

    run_here(context, lambda session: services.up_command(session.output, called=session.targets))


@app.command()
def down(context: typer.Context) -> None:
    """End what `up` started. Running batches go on after the next `up`."""
    from parley.cli import services

    run_here(context, lambda session: services.down_command(session.output))


@app.command()
def verify(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(help="of a backup; the services' own files where none is named")
    ] = None,
) -> None:
    """Recompute everything from the ledger of calls.

    It reads the services' files on this machine, also while they run, and says what differs. Exit code 1 where anything
    does.
    """
    from parley.cli import maintaining

    run_here(context, lambda session: maintaining.verify(session.output, folder))


@app.command()
def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="where to write")],
    force: Annotated[bool, typer.Option("--force", help="overwrite a backup that is there")] = False,
) -> None:
    """Copy the services' data, also while they run.

    Both files, each as it is at one moment, checked when it is written.
    """
    from parley.cli import maintaining

    run_here(context, lambda session: maintaining.backup(session.output, folder, force=force))


@app.command()
def restore(
    context: typer.Context, folder: Annotated[Path, typer.Argument(help="where `parley backup` wrote")]
) -> None:
    """Put a backup back, with the services stopped.

    Unfinished batches are paused then, and nothing is spent before `resume`. What was there is kept beside it.
    """
    from parley.cli import maintaining

    run_here(context, lambda session: maintaining.restore(session.output, folder))


@app.command()
def demo(
    context: typer.Context,
    yes: Yes = False,
    spec: Annotated[Path | None, typer.Option(help="another spec than the example")] = None,
    out: Annotated[Path, typer.Option(help="where the dataset goes")] = Path("out"),
) -> None:
    """Quote, start, watch and export the example.

    Starts the services where none run, and ends those at the end.
    """
    from parley.cli import demo

    run_here(context, lambda session: demo.demo(session, spec=spec, out=out, yes=yes))
