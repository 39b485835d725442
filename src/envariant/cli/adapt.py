"""`envariant adapt`: adapt a saved model to a new environment with a few labels."""

from pathlib import Path

from envariant.cli.options import Json
from envariant.core.printable import one_line


def adapt(
    model: Path,
    labels: Path,
    *,
    out: Path | None = None,
    encoding: str = "utf-8",
    json: Json = False,
) -> None:
    """Adapt a saved model to a new environment with a few labeled rows.

    The command fits an intercept that is added to the logits. With at least 20 labels, it also fits a slope
    that multiplies the logits, if the slope improves the model. Both are shrunk towards the original model.

    Parameters
    ----------
    model
        Folder of a saved model.
    labels
        Table with input columns and target for some rows of the new environment.
    out
        Folder for the adapted model; MODEL-adapted by default.
    encoding
        Encoding of a text file.
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.saved_model import load_model
    from envariant.saved_model.folder import check_adapted

    folder = model.resolve()
    out = folder.with_name(f"{folder.name}-adapted") if out is None else out
    loaded = load_model(model)
    check_adapted(out, model)
    adapted = loaded.adapt(labels, encoding=encoding)
    adapted.save(out)
    assert adapted.adaptation is not None
    if json:
        print_json({"adaptation": adapted.to_dict()["adaptation"], "model": str(out)})
        return
    print_lines([*map(one_line, adapted.adaptation.summary), f"model: {out}"])
