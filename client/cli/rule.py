"""`gugus rule`: on which nodes guests run, and which of them run together or apart."""

from typing import Annotated

import typer
from gugus.cluster.v1.rule_pb2 import Rule, RuleSpec

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import complete_guest, complete_rule, run
from client.cli.words import labels, moment, short, yes
from client.sdk import Gugus
from common.errors import invalid
from common.validate import name as check_name
from common.validate import require

app = typer.Typer(no_args_is_help=True, help="Rules about where guests run.")

New = Annotated[str, typer.Argument(metavar="NAME")]
Name = Annotated[str, typer.Argument(metavar="RULE", autocompletion=complete_rule)]
Guests = Annotated[
    list[str] | None, typer.Option("--guest", metavar="GUEST", help="May be repeated.", autocompletion=complete_guest)
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Guests with all of these; may be repeated.")
]
Prefer = Annotated[bool, typer.Option("--prefer", help="Only a wish: kept where that is possible.")]
Force = Annotated[bool, typer.Option("--force", help="Save it although it cannot hold as things are.")]
Notes = Annotated[str, typer.Option(metavar="TEXT", help="Notes for people.")]
Domain = Annotated[
    str,
    typer.Option(metavar="LABEL", help="Label of nodes that makes a domain, like rack; without it the node itself."),
]
COLUMNS = ("name", "says", "guests", "strict", "on", "problems")


@app.command()
def nodes(
    ctx: typer.Context,
    name: New,
    node: Annotated[list[str], typer.Option("--node", metavar="NODE[=PRIORITY]", help="Higher is better; repeated.")],
    guest: Guests = None,
    label: Labels = None,
    prefer: Prefer = False,
    failback: Annotated[bool, typer.Option(help="Go back to a better node when it is there again.")] = True,
    notes: Notes = "",
    force: Force = False,
    output: Format = Output.TABLE,
) -> None:
    """Make a rule: guests run on these nodes, best on those with the highest priority.

    gugus rule nodes licensed --guest oracle --node n1=2 --node n2=1
    """
    spec = _spec(guest, label, prefer=prefer, notes=notes)
    spec.nodes.no_failback = not failback
    for text in node:
        place, _, priority = text.partition("=")
        if priority and not priority.isdecimal():
            raise invalid("--node", f'"{text}" is not NODE or NODE=PRIORITY, like n1=10.')
        spec.nodes.priorities[place] = int(priority or 0)
    _create(ctx, name, spec, force=force, output=output)


@app.command()
def together(
    ctx: typer.Context,
    name: New,
    guest: Guests = None,
    label: Labels = None,
    domain: Domain = "",
    prefer: Prefer = False,
    notes: Notes = "",
    force: Force = False,
    output: Format = Output.TABLE,
) -> None:
    """Make a rule: guests run on the same node (or in the same rack, site ...)."""
    spec = _spec(guest, label, prefer=prefer, notes=notes)
    spec.together.domain = domain
    spec.together.SetInParent()
    _create(ctx, name, spec, force=force, output=output)


@app.command()
def apart(
    ctx: typer.Context,
    name: New,
    guest: Guests = None,
    label: Labels = None,
    domain: Domain = "",
    prefer: Prefer = False,
    notes: Notes = "",
    force: Force = False,
    output: Format = Output.TABLE,
) -> None:
    """Make a rule: no two of the guests run on the same node (or in the same rack, site ...)."""
    spec = _spec(guest, label, prefer=prefer, notes=notes)
    spec.apart.domain = domain
    spec.apart.SetInParent()
    _create(ctx, name, spec, force=force, output=output)


@app.command("list")
def list_(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List rules, and what is wrong with them as the cluster is now."""
    show_list(run(ctx, lambda gugus: gugus.rules.list()), output, COLUMNS, _row, none="no rules.")


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a rule."""
    show(run(ctx, lambda gugus: gugus.rules.get(name)), output, _fields)


@app.command()
def enable(ctx: typer.Context, name: Name, force: Force = False, output: Format = Output.TABLE) -> None:
    """Have a rule looked at again."""
    show_done(_able(ctx, name, disabled=False, force=force), output, f"rule {name} is looked at.")


@app.command()
def disable(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Have a rule looked at by nobody."""
    show_done(_able(ctx, name, disabled=True, force=False), output, f"rule {name} is looked at by nobody.")


@app.command()
def delete(ctx: typer.Context, name: Name, yes_: Yes = False, output: Format = Output.TABLE) -> None:
    """Delete a rule."""
    confirm(f"Delete the rule {name}?", yes_)
    run(ctx, lambda gugus: gugus.rules.delete(name))
    show_done(None, output, f"rule {name} is deleted.")


def _spec(guest: list[str] | None, label: list[str] | None, *, prefer: bool, notes: str) -> RuleSpec:
    if not guest and not label:
        raise invalid("--guest", "is missing: name guests, or labels that they have.")
    return RuleSpec(guests=guest or (), guest_labels=labels(label or ()), preferring=prefer, notes=notes)


def _create(ctx: typer.Context, name: str, spec: RuleSpec, *, force: bool, output: Output) -> None:
    require("NAME", check_name(name))
    rule = run(ctx, lambda gugus: gugus.rules.create(name, spec, force=force))
    show_done(rule, output, f"rule {name} is made. It moves nobody; it counts whenever a guest is given a node.")


def _able(ctx: typer.Context, name: str, *, disabled: bool, force: bool) -> Rule:
    async def work(gugus: Gugus) -> Rule:
        rule = await gugus.rules.get(name)
        rule.spec.disabled = disabled
        return await gugus.rules.update(name, rule.spec, force=force, revision=rule.meta.revision)

    return run(ctx, work)


def _says(spec: RuleSpec) -> str:
    match spec.WhichOneof("kind"):
        case "nodes":
            ranked = sorted(spec.nodes.priorities.items(), key=lambda item: (-item[1], item[0]))
            return "on " + ", ".join(f"{node} ({priority})" if priority else node for node, priority in ranked)
        case "together":
            return "together" + (f" in one {spec.together.domain}" if spec.together.domain else "")
        case _:
            return "apart" + (f", each in its own {spec.apart.domain}" if spec.apart.domain else "")


def _row(rule: Rule) -> tuple[str, ...]:
    return (
        rule.meta.name,
        _says(rule.spec),
        short(", ".join(rule.covers)),
        yes(not rule.spec.preferring),
        yes(not rule.spec.disabled),
        short(" ".join(rule.problems)),
    )


def _fields(rule: Rule) -> list[tuple[str, str]]:
    spec = rule.spec
    return [
        ("name", rule.meta.name),
        ("says", _says(spec)),
        ("strict", yes(not spec.preferring)),
        ("on", yes(not spec.disabled)),
        ("failback", yes(not spec.nodes.no_failback) if spec.HasField("nodes") else ""),
        ("names", ", ".join(spec.guests)),
        ("selects", ", ".join(f"{key}={value}" for key, value in sorted(spec.guest_labels.items()))),
        ("covers", ", ".join(rule.covers)),
        ("problems", "\n".join(rule.problems)),
        ("notes", spec.notes),
        ("created", moment(rule.meta.created_at)),
    ]
