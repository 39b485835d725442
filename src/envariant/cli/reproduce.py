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
    """Repeat the experiments of a publication, test its claims, and write a report with figures and tables.

    Finished runs are stored. Run the same command again to resume after an interruption.

    Parameters
    ----------
    name
        Name of the reproduction, such as sjtu-2023.
    profile
        Size of the experiments. quick: small networks and few replicas; takes minutes on two CPU cores.
        full: takes hours.
    only
        Names of the sections to run; other sections are shown only if their runs are already stored.
    out
        Folder for the runs, the report, tables and figures; reproductions/NAME-PROFILE by default.
    resume
        Require stored runs: fail if the folder has none.
    list_
        List the available reproductions and their sections.
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.core.errors import EnvariantError
    from envariant.reproductions import NAMES, reproduction

    if list_ and name is not None:
        raise EnvariantError("reproduce: --list lists all reproductions; leave the name out")
    if list_ or name is None:
        sections = {key: [section.name for section in reproduction(key).sections] for key in NAMES}
        if json:
            print_json({key: {"about": NAMES[key], "sections": names} for key, names in sections.items()})
        else:
            lines = [
                f"{key}  {NAMES[key]}\n  sections: {', '.join(names)}" for key, names in sections.items()
            ]
            print_lines(lines)
        return
    requested = reproduction(name)
    from envariant.core.console import SafeConsole
    from envariant.reproductions.publish import SectionResult, perform

    folder = out or Path("reproductions") / f"{name}-{profile}"
    if folder.exists() and not folder.is_dir():
        raise EnvariantError(f"{folder}: is a file; choose a folder for the results")
    if resume and not (folder / "runs").is_dir():
        raise EnvariantError(f"{folder}: has no stored runs to resume; leave --resume out to start")
    log = SafeConsole(stderr=True, soft_wrap=True)
    results: list[SectionResult] = []
    for result in perform(
        requested, folder, profile, only=only, mnist=mnist, report=lambda line: log.print(line, style="dim")
    ):
        results.append(result)
        if not json:
            print_lines([f"{result.section.name}: {result.count}"])
            print_lines([f"  {claim.verdict}: {claim.text} ({claim.numbers})" for claim in result.claims])
    if json:
        print_json(
            {
                "page": str(folder / "report.html"),
                "profile": profile,
                "sections": {
                    result.section.name: [
                        {"claim": claim.text, "verdict": claim.verdict, "numbers": claim.numbers}
                        for claim in result.claims
                    ]
                    for result in results
                },
            }
        )
    else:
        print_lines([f"\nOpen {folder / 'report.html'} in a browser."])
