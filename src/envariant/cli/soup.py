"""`envariant soup`: average the weights of the replicas of a run, or of the runs of a study."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist


def soup(
    folder: Path,
    *,
    rule: Literal["uniform", "greedy"] = "uniform",
    algorithm: Annotated[str, Parameter(alias="-a")] = "",
    data: Annotated[str | None, Parameter(alias="-d")] = None,
    mnist: Mnist = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
) -> None:
    """Average the weights of networks that were trained from the same initial weights (--shared-init).

    Parameters
    ----------
    folder
        Folder of a run or of a study.
    rule
        uniform averages all networks; greedy keeps those that do not lower the validation score.
    algorithm
        Algorithm of the study, if it has several.
    data
        Data of the run, if they cannot be loaded by their stored name.
    out
        Folder for the averaged network as a saved model; only for tables.
    """
    from envariant import data as sources
    from envariant.cli.output import print_json, print_lines
    from envariant.core.errors import EnvariantError
    from envariant.data.tables.source import TableSource
    from envariant.saved_model.model import SavedModel
    from envariant.studies.soups import soup as average
    from envariant.studies.study_results import StudyResults
    from envariant.training.result import TrainingResult
    from envariant.training.store import Store

    with Store(folder) as store:
        is_study = store.fact("study") is not None
    result = StudyResults.load(folder) if is_study else TrainingResult.load(folder)
    source = None if data is None else sources.source(data, folder=mnist)
    averaged = average(result, rule, algorithm=algorithm, data=source)
    if out is not None:
        source = source or sources.source(averaged.result.record.spec.data)
        if not isinstance(source, TableSource):
            raise EnvariantError(
                "soup: --out saves the averaged network, which is possible only for tables; remove --out"
            )
        SavedModel.of(source, averaged.result).save(out)
    if json:
        print_json(averaged.to_dict())
    else:
        print_lines([str(averaged)])
