"""`samebits info --kernels`: what is proven on this GPU, from the store of proofs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import torch

from samebits.errors import ConfigError
from samebits.models.digests import proof_folder
from samebits.numerics.gpu.proofs import ProofRecord, ProofStore
from samebits.numerics.gpu.roofline import Ceilings, measure_ceilings
from samebits.tables import align


def show(as_json: bool) -> int:
    """Print the proofs of this device. Raises `ConfigError` where there is no GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("kernels are proven on a GPU, and there is none here; leave out --kernels")
    from samebits.numerics.gpu.device_key import device_key

    device = torch.device("cuda", torch.cuda.current_device())
    store = ProofStore(proof_folder(), device_key(device))
    if as_json:
        print(msgspec.json.encode({"key": store.key, "kernels": store.entries}).decode())
    elif not store.entries:
        print(
            f"nothing is proven yet on this {store.key['device']}; the first start of a model proves its kernels"
        )
    else:
        print("\n".join(lines(store.entries, measure_ceilings(device))))
    return 0


def lines(records: Iterable[ProofRecord], ceilings: Ceilings) -> list[str]:
    """The table, and below it every candidate that was rejected, with the reason."""
    ordered = sorted(records, key=lambda record: record.place)
    rows = [("clause and shape", "rows", "tried", "rejected", "chosen", "us", "of roofline")]
    for record in ordered:
        share = ceilings.share(record.seconds, record.bytes, record.operations)
        rows.append(
            (
                f"{record.clause} {record.problem}",
                str(record.bucket or "prefill"),
                str(len(record.tried)),
                str(sum(entry.seconds is None for entry in record.tried)),
                record.chosen,
                f"{record.seconds * 1e6:.1f}",
                f"{share:.0%}",
            )
        )
    return [*align(rows), *rejections(ordered)]


def rejections(records: Iterable[ProofRecord]) -> Iterator[str]:
    for record in records:
        for entry in record.tried:
            if entry.seconds is None:
                place = f"{record.clause} {record.problem}, {record.bucket or 'prefill'} rows"
                yield f"rejected: {place}, {entry.name}: {entry.rejection}"
