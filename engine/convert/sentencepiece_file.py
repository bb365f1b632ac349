"""A SentencePiece model and the tokens that were added to it outside its file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from engine.convert.git_lfs import refuse_pointer
from engine.convert.tokenizer_file import AddedToken
from engine.errors import ModelFormatError

_Piece = sentencepiece_model.ModelProto.SentencePiece
_FIXED = (_Piece.UNKNOWN, _Piece.BYTE)
"""What SentencePiece itself needs stays as it is, however a folder calls it."""
_MAX_ADDED = 100_000


class SentencePieceFile:
    """A `tokenizer.model` of a folder. Raises `ModelFormatError`, and `ValueError` for bad additions."""

    file_name = "tokenizer.model"
    kind = "sentencepiece"

    def __init__(self, folder: Path, added: Sequence[AddedToken]) -> None:
        path = folder / self.file_name
        refuse_pointer(path)
        self._model = sentencepiece_model.ModelProto()
        try:
            self._original = path.read_bytes()
            self._model.ParseFromString(self._original)
        except OSError as error:
            raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
        except Exception as error:
            raise ModelFormatError(f"{path} is not a readable SentencePiece model.") from error
        own = [
            AddedToken(index, piece.piece, special=piece.type == _Piece.CONTROL)
            for index, piece in enumerate(self._model.pieces)
            if piece.type in (_Piece.CONTROL, _Piece.USER_DEFINED)
        ]
        self._new = [token for token in added if self._is_new(token)]
        for token in self._new:
            self._add(token)
        known = [token for token in added if self._model.pieces[token.token_id].type not in _FIXED]
        self.added = [*own, *known]

    @property
    def ids(self) -> dict[str, int]:
        return {piece.piece: index for index, piece in enumerate(self._model.pieces)}

    def save(self, path: Path, control: Collection[int]) -> None:
        pieces = self._model.pieces
        opened = [index for index in control if pieces[index].type not in (_Piece.CONTROL, *_FIXED)]
        for index in opened:
            pieces[index].type = _Piece.CONTROL
        path.write_bytes(self._model.SerializeToString() if self._new or opened else self._original)

    def _is_new(self, token: AddedToken) -> bool:
        """Folders list the model's own control tokens again; these are left as the model has them."""
        pieces = self._model.pieces
        return not (0 <= token.token_id < len(pieces) and pieces[token.token_id].piece == token.text)

    def _add(self, token: AddedToken) -> None:
        """Put a token where it belongs; gaps before it are filled with pieces that nothing uses."""
        pieces = self._model.pieces
        if not 0 <= token.token_id < len(pieces) + _MAX_ADDED:
            raise ValueError(f"the token {token.text!r} has the id {token.token_id}")
        while len(pieces) <= token.token_id:
            pieces.add(piece=f"<unused {len(pieces)}>", score=0.0, type=_Piece.UNUSED)
        pieces[token.token_id].piece = token.text
        pieces[token.token_id].type = _Piece.CONTROL if token.special else _Piece.USER_DEFINED
