"""What an operator asks of a deployment from the command line: the quarantine."""

import click

from app.client import Client
from app.commands import asks
from app.console import DONE, Output, answers


@click.group()
def quarantine() -> None:
    """Look after what was given up on. Tasks that killed their workers, and messages that nobody can read."""


@quarantine.command("list")
@answers
@asks
def list_entries(client: Client, output: Output) -> int:
    """List what is in quarantine, newest first."""
    entries = list(client.quarantine())
    rows = [[e["id"], e["kind"], e["quarantined_at"], e["model_version"] or "", e["reason"]] for e in entries]
    output.table({"entries": entries}, ["id", "kind", "since", "model", "reason"], rows)
    return DONE


@quarantine.command()
@click.argument("entry_id")
@answers
@asks
def requeue(client: Client, output: Output, entry_id: str) -> int:
    """Run it again. A task is run as a new one, whose id is printed; a message goes back into its queue."""
    requeued = client.requeue(entry_id)
    output.result(requeued, requeued["task_id"] or entry_id)
    return DONE


@quarantine.command()
@click.argument("entry_id")
@answers
@asks
def drop(client: Client, output: Output, entry_id: str) -> int:
    """Take it out for good. A task stays FAILED."""
    client.drop(entry_id)
    output.result({"id": entry_id}, entry_id)
    return DONE
