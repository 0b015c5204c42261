"""TensorFlow as far as the export of a linear head needs it, in well under half of the time that `import tensorflow` takes.

Most of those seconds go into the package's public names, of which an export uses a dozen. What stands behind these is found in
`tensorflow.python`, whose layout is promised to nobody: so this is only for a process whose failure another one makes up for
(`head_service.exporting`). A test holds what it writes to what the whole of TensorFlow writes.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace


def install() -> None:
    """From here on `import tensorflow` gives those few names.

    Raises:
        ImportError, AttributeError: this TensorFlow is laid out otherwise, or is not there.
    """
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("tensorflow is not installed")
    package = ModuleType("tensorflow")
    package.__spec__ = found
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["tensorflow"] = package
    _fill(package)


def _fill(package: ModuleType) -> None:
    # Only now: each of them begins with the package's own start, which `install` has put out of the way.
    from tensorflow.python.compat import v2_compat  # noqa: PLC0415
    from tensorflow.python.eager.polymorphic_function import polymorphic_function  # noqa: PLC0415
    from tensorflow.python.framework import dtypes, tensor  # noqa: PLC0415
    from tensorflow.python.lib.io import tf_record  # noqa: PLC0415
    from tensorflow.python.module import module  # noqa: PLC0415
    from tensorflow.python.ops import array_ops, math_ops, nn_ops, variables  # noqa: PLC0415
    from tensorflow.python.saved_model import save  # noqa: PLC0415
    from tensorflow.python.trackable import asset  # noqa: PLC0415

    v2_compat.enable_v2_behavior()
    vars(package).update(
        Module=module.Module,
        TensorSpec=tensor.TensorSpec,
        Variable=variables.Variable,
        concat=array_ops.concat,
        float32=dtypes.float32,
        function=polymorphic_function.function,
        io=SimpleNamespace(TFRecordWriter=tf_record.TFRecordWriter),
        matmul=math_ops.matmul,
        nn=SimpleNamespace(sigmoid=math_ops.sigmoid, softmax=nn_ops.softmax_v2, softplus=math_ops.softplus),
        reshape=array_ops.reshape,
        saved_model=SimpleNamespace(Asset=asset.Asset, save=save.save),
        shape=array_ops.shape_v2,
    )
