"""Static vectors as GGUF control-vector files for llama.cpp."""

from pathlib import Path

from howwhen.errors import MissingExtraError, SteeringError
from howwhen.vectors import VectorSet


def export_gguf(folder: Path, vectors: VectorSet) -> list[Path]:
    """Write each vector of a static set as a GGUF control-vector file, one per category.

    Each file holds one direction, numbered by its layer. llama.cpp adds it to the output of that
    block. The bias vector, if any, is added to each direction.

    Returns:
        The files, by category.

    Raises:
        SteeringError: a set that depends on the residual, or layer 0, which the format cannot
            express.
        MissingExtraError: the package `gguf` is not installed.
    """
    if not vectors.is_static:
        raise SteeringError(
            f"a control-vector file holds a fixed direction, but these vectors depend on the "
            f"residual ({type(vectors.modulation).__name__}); train with --elicit.form linear"
        )
    if vectors.layer < 1:
        raise SteeringError("control-vector files number layers from 1; layer 0 cannot be exported")
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise MissingExtraError(
            "writing GGUF needs the package gguf; type: pip install gguf"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    added = vectors.vectors if vectors.bias is None else vectors.vectors + vectors.bias
    for category, direction in enumerate(added):
        path = folder / f"category-{category}.gguf"
        writer = GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", vectors.model)
        writer.add_uint32("controlvector.layer_count", vectors.layer)
        writer.add_tensor(f"direction.{vectors.layer}", direction.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths
