"""`halfbyte doctor`."""

from __future__ import annotations

import click

from halfbyte.cli.options import device_options, output_options
from halfbyte.cli.output import print_json


@click.command("doctor", help="Show devices, compiled features and versions.")
@device_options()
@output_options()
def command(device: str, threads: int, as_json: bool, quiet: bool) -> None:
    """Describe the installation."""
    from halfbyte.runtime.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json(found)
        return
    if quiet:
        return
    for backend in found["backends"]:
        state = "available" if backend["available"] else f"not available: {backend['reason']}"
        devices = f" ({', '.join(backend['devices'])})" if backend["devices"] else ""
        print(f"{backend['name']:<6} {state}{devices}")
    for feature in found["features"]:
        print(f"feature  {feature}")
    for name, version in found["versions"].items():
        print(f"version  {name} {version}")
