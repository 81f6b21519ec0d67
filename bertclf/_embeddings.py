"""The few rows of an embedding table that some texts use, trained in place of the whole table."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import embedding


class UsedRows(nn.Module):
    """Stands for an embedding table, and holds a copy of those of its rows that are used.

    Of a large vocabulary a text corpus uses little: gradients of the whole table would be nearly all zeros, to be
    written, clipped and stepped over at every step.

    Parameters
    ----------
    table : Embedding
        The whole table.
    token_ids : ndarray of int, shape (n_used,)
        Which rows are used, sorted; no other may be looked up.
    """

    def __init__(self, table: nn.Embedding, token_ids: npt.NDArray[np.integer]) -> None:
        super().__init__()
        device = table.weight.device
        rows = torch.from_numpy(token_ids.astype(np.int64)).to(device)
        row_of_token = torch.zeros(table.num_embeddings, dtype=torch.int64, device=device)
        row_of_token[rows] = torch.arange(len(rows), device=device)
        self.token_ids = token_ids
        self._table = [table]  # in a list, so that its weight is no parameter of this module
        self._rows = rows
        self._row_of_token = row_of_token
        padding = table.padding_idx
        self._padding_row = int(row_of_token[padding]) if padding is not None and padding in token_ids else None
        self.weight = nn.Parameter(table.weight.detach()[rows])

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors of tokens."""
        return embedding(self._row_of_token[token_ids], self.weight, self._padding_row)

    @torch.no_grad()
    def put_back(self, *, shrinkage: float) -> None:
        """Write the rows into the whole table.

        Parameters
        ----------
        shrinkage : float
            Factor on all other rows: they have no gradient, but weight decay meets them too.
        """
        (table,) = self._table
        if shrinkage != 1:
            table.weight.mul_(shrinkage)
        table.weight[self._rows] = self.weight
