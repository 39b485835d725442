"""Store scikit-learn estimators and similar objects with skops instead of pickle.

Files may be untrusted. The types named in a file and the size of its content are checked before any object is
created. The nodes of decision trees are checked too, because scikit-learn's compiled code does not check
them.
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.errors import EnvariantError, first_line, listed
from envariant.predictors.base import UntrustedTypes

_TRUSTED = (
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels.ConstantKernel",
    "sklearn.gaussian_process.kernels.Product",
    "sklearn.gaussian_process.kernels.RBF",
    "sklearn.gaussian_process.kernels.Sum",
    "sklearn.gaussian_process.kernels.WhiteKernel",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.model_selection._split.GroupKFold",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.LeaveOneGroupOut",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
)


def dump(name: str, estimator: Any) -> Tensor:
    """Convert an estimator to bytes, a uint8 tensor `[bytes]`.

    Args:
        name: Name of the predictor, for error messages.
        estimator: Fitted estimator.

    Raises:
        EnvariantError: If the estimator has a part that cannot be stored without pickle.
    """
    from skops.io import dumps, get_untrusted_types, loads

    try:
        content = dumps(estimator)
        # Some parts, such as lambdas, can be stored but not loaded.
        loads(content, trusted=get_untrusted_types(data=content))
    # An attribute of a user's class can raise anything.
    except Exception as error:
        raise EnvariantError(
            f"{name}: cannot be saved ({type(error).__name__}: {first_line(error)}); keep lambdas, open "
            f"files and generators out of the estimator"
        ) from None
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def load(content: Tensor, trusted: Sequence[str]) -> Any:
    """Load an estimator from the bytes returned by `dump`.

    Args:
        content: Bytes of the estimator, a uint8 tensor `[bytes]`.
        trusted: Full names of classes and functions that the content may refer to, in addition to those of
            scikit-learn, XGBoost and LightGBM.

    Raises:
        ValueError: If the content is not valid.
        UntrustedTypes: If the content refers to a class or function that is not trusted.
    """
    from skops.io import get_untrusted_types, loads

    if content.dtype != torch.uint8 or content.dim() != 1:
        raise ValueError("the estimator must be bytes")
    data = content.numpy().tobytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        # Compressed content could be far larger than the file.
        if any(member.compress_type for member in members) or sum(m.file_size for m in members) > len(data):
            raise ValueError("the estimator must not be compressed")
    named = get_untrusted_types(data=data)
    unknown = sorted(set(named) - {*_TRUSTED, *trusted})
    if unknown:
        raise UntrustedTypes(
            f"contains {'a type' if len(unknown) == 1 else 'types'} that may run code: "
            f"{listed(unknown, 20)}; if you know the code, pass trusted={unknown}"
        )
    estimator = loads(data, trusted=list(named))
    for part in _parts(estimator):
        _check_trees(part)
    return estimator


def _parts(root: Any) -> Iterator[Any]:
    """Yield an object and all objects in its attributes, lists, dictionaries and arrays."""
    open_parts: list[Any] = [root]
    seen: set[int] = set()
    while open_parts:
        part = open_parts.pop()
        if id(part) in seen or isinstance(part, str | bytes | bytearray | int | float | type(None)):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            open_parts += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            open_parts += list(part)
        elif isinstance(part, np.ndarray):
            open_parts += part.ravel().tolist() if part.dtype == object else []
        else:
            open_parts += list(getattr(part, "__dict__", {}).values())


def _check_trees(part: Any) -> None:
    """Check that all paths of an estimator's decision trees end in leaves and use only existing inputs.

    Raises:
        ValueError: If a node is out of range.
    """
    inputs = getattr(part, "n_features_in_", 0)
    if (tree := getattr(part, "tree_", None)) is not None and type(tree).__name__ == "Tree":
        left, right, feature = (
            np.asarray(a) for a in (tree.children_left, tree.children_right, tree.feature)
        )
        _check_nodes(left, right, np.where(left < 0, 0, feature), left < 0, inputs)
        if tree.n_features != inputs:
            raise ValueError("a tree does not match the inputs")
    for trees in getattr(part, "_predictors", ()):
        for each in trees:
            nodes, is_leaf = each.nodes, each.nodes["is_leaf"].astype(bool)
            if (nodes["is_categorical"].astype(bool) & ~is_leaf).any():
                categories = max(len(each.raw_left_cat_bitsets), len(each.binned_left_cat_bitsets))
                if (nodes["bitset_idx"] >= categories).any():
                    raise ValueError("a tree has categories out of range")
            feature = np.where(is_leaf, 0, nodes["feature_idx"])
            _check_nodes(nodes["left"].astype(int), nodes["right"].astype(int), feature, is_leaf, inputs)


def _check_nodes(
    left: NDArray[Any], right: NDArray[Any], feature: NDArray[Any], is_leaf: NDArray[np.bool_], inputs: int
) -> None:
    index = np.arange(len(left))
    for child in (left, right):
        if not (is_leaf | ((child > index) & (child < len(left)))).all():
            raise ValueError("the nodes of a tree must lead to leaves")
    if not len(left) or not ((feature >= 0) & (feature < inputs)).all():
        raise ValueError("a tree does not match the inputs")
