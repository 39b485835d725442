"""`envariant reproduce`: repeat the experiments of a publication and test its claims."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist


def reproduce(
    name: str | None = None,
    *,
    profile: Literal["quick", "full"] = "quick",
    only: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Repeat the experiments of a publication, and write one page with its figures and claims.

    Finished runs are stored. Run the same command again to resume after an interruption.

    Parameters
    ----------
    name
        Name of the reproduction, such as sjtu-2023.
    profile
        quick: small networks and few replicas, minutes on two cores. full: hours.
    only
        Sections to run; the others show stored runs.
    out
        Folder for runs, page, tables and figures; the default is reproductions/NAME-PROFILE.
    resume
        Fail if the folder has no stored runs.
    list_
        List the reproductions and their sections.
    """
    from envariant.cli.show import print_json, print_lines
    from envariant.core.errors import EnvariantError
    from envariant.reproductions import NAMES, reproduction

    if list_ or name is None:
        known = {key: [part.name for part in reproduction(key).parts] for key in NAMES}
        if json:
            print_json({key: {"about": NAMES[key], "parts": parts} for key, parts in known.items()})
        else:
            print_lines([f"{key}  {NAMES[key]}\n  parts: {', '.join(parts)}" for key, parts in known.items()])
        return
    chosen = reproduction(name)
    from rich.console import Console

    from envariant.reproductions.publish import Section, perform

    folder = out or Path("reproductions") / f"{name}-{profile}"
    if resume and not (folder / "runs").is_dir():
        raise EnvariantError(f"{folder}: nothing has been stored there to go on with; leave --resume out")
    remarks = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    sections: list[Section] = []
    for section in perform(
        chosen, folder, profile, only=only, mnist=mnist, report=lambda line: remarks.print(line, style="dim")
    ):
        sections.append(section)
        if not json:
            print_lines([f"{section.part.name}: {section.count}"])
            print_lines([f"  {claim.verdict}: {claim.text} ({claim.numbers})" for claim in section.claims])
    if json:
        print_json(
            {
                "page": str(folder / "report.html"),
                "profile": profile,
                "parts": {
                    section.part.name: [
                        {"claim": claim.text, "verdict": claim.verdict, "numbers": claim.numbers}
                        for claim in section.claims
                    ]
                    for section in sections
                },
            }
        )
    else:
        print_lines([f"\nOpen {folder / 'report.html'} in a browser."])
