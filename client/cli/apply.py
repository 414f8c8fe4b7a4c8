"""`gugus apply` and `gugus diff`: the cluster as files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from client.bulk import MAX_PARALLEL, Outcome, Result, Runner
from client.cli.confirm import Yes, confirm
from client.cli.many import PARALLEL, finish, followed
from client.cli.output import Format, Output, say, write
from client.cli.session import run
from client.cli.words import labels as read_labels
from client.sdk import Gugus
from common.errors import invalid

if TYPE_CHECKING:
    from client.apply.plan import Action

app = typer.Typer()
"""Commands of the root."""

DIFFERENT = 1
"""Exit code of `gugus diff` when something differs, as diff(1) has it."""

Files = Annotated[
    list[str],
    typer.Option("--file", "-f", metavar="FILE", help='A file, a folder of *.yaml, or "-"; may be repeated.'),
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="What a guest's document leaves out returns to its default; else it stays as it is."),
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Delete guests with the labels of --label that no document names.")
]
PruneLabel = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="What --prune may delete; may be repeated.")
]


@app.command()
def apply(
    ctx: typer.Context,
    file: Files,
    exact: Exact = False,
    prune: Prune = False,
    label: PruneLabel = None,
    delete_removed_disks: Annotated[
        bool, typer.Option("--delete-removed-disks", help="Delete what is on disks that documents no longer name.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, as `diff` does.")] = False,
    yes: Yes = False,
    parallel: Annotated[int, typer.Option(min=1, max=MAX_PARALLEL, help="So many guests at a time.")] = PARALLEL,
    wait: Annotated[bool, typer.Option(help="Wait until all is done.")] = True,
    output: Format = Output.TABLE,
) -> None:
    """Make guests, pools, networks and projects what files say; what is so already is left alone."""
    actions = _planned(ctx, file, exact, prune, label)
    if dry_run:
        _show(actions, output)
        return
    _confirm(actions, delete_removed_disks, yes)
    from client.apply.carry_out import begin, groups  # here: other commands start faster without it
    from client.apply.plan import Step

    by_target = {action.target: action for action in actions}

    async def work(gugus: Gugus) -> list[Outcome]:
        runner = Runner(
            gugus.tasks,
            lambda target: begin(gugus, by_target[target], exact=exact, delete_removed_disks=delete_removed_disks),
            parallel=parallel,
            wait=wait,
        )
        outcomes = await followed(runner, groups(actions), (), output)
        for outcome in outcomes:
            changed = by_target[outcome.name].step is not Step.NOTHING
            if outcome.result is Result.UNCHANGED and changed:  # a change that needed no task
                outcome.result = Result.DONE
        return outcomes

    finish(run(ctx, work), output, none="the files hold no documents.")


@app.command()
def diff(
    ctx: typer.Context,
    file: Files,
    exact: Exact = False,
    prune: Prune = False,
    label: PruneLabel = None,
    output: Format = Output.TABLE,
) -> None:
    """Show what `apply` would change; exits with 0 when nothing, 1 when something, 2 when a file is wrong."""
    if _show(_planned(ctx, file, exact, prune, label), output):
        raise typer.Exit(DIFFERENT)


def _planned(
    ctx: typer.Context, files: Sequence[str], exact: bool, prune: bool, label: Sequence[str] | None
) -> "list[Action]":
    from client.apply.carry_out import present  # here: other commands start faster without it
    from client.apply.documents import load
    from client.apply.plan import GUEST, plan

    prunable = read_labels(label or ())
    if prune and not prunable:
        raise invalid("--prune", "needs --label, which says what it may delete.", remedy="Add --label KEY=VALUE.")
    if prunable and not prune:
        raise invalid("--label", "is of --prune.", remedy="Labels that guests are to have stand in their documents.")
    documents = load(files)
    kinds = {document.kind for document in documents} | ({GUEST} if prune else set())
    there = run(ctx, lambda gugus: present(gugus, kinds))
    return plan(documents, there, exact=exact, prune=prunable or None)


def _confirm(actions: "Sequence[Action]", delete_removed_disks: bool, yes: bool) -> None:
    from client.apply.plan import Step

    deleted = [action.name for action in actions if action.step is Step.DELETE]
    if deleted:
        confirm(f"Delete {len(deleted)} guests with their disks ({', '.join(deleted)})?", yes)
    lost = [
        f"{action.target} {difference.path}"
        for action in actions
        for difference in action.differences
        if action.step is Step.UPDATE and difference.new is None and difference.path.startswith("disks[")
    ]
    if lost and delete_removed_disks:
        confirm(f"Delete the disks {', '.join(lost)} and everything on them?", yes)


def _show(actions: "Sequence[Action]", output: Output) -> bool:
    """Write what differs; return whether anything does."""
    from client.apply.plan import Step

    changes = [action for action in actions if action.step is not Step.NOTHING]
    if output is not Output.TABLE:
        write([_plain(action) for action in changes], output)
        return bool(changes)
    for action in changes:
        print(f"{action.step} {action.target}")
        for difference in action.differences:
            for line in difference.lines():
                print(f"  {line}")
    if not changes:
        say("nothing differs.")
    return bool(changes)


def _plain(action: "Action") -> dict[str, object]:
    return {
        "step": action.step.value,
        "target": action.target,
        "differences": [{"path": d.path, "old": d.old, "new": d.new} for d in action.differences],
    }
