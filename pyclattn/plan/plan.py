"""`Plan`: read by models, written by callers and by calibration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyclattn._tables import table
from pyclattn.errors import ArgumentError, DTypeError, ModelFormatError, PyclattnError
from pyclattn.plan.choice import Choice, choice_of
from pyclattn.plan.classes import Calibrated, LengthClass, kv_heads, progressions
from pyclattn.plan.serial import fields, plain
from pyclattn.weights.targets import as_path, write_atomically

# A file of more bytes is no plan; 100 attentions of 64 heads in ten length classes take 0.5 MB.
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Plan:
    """What each attention of a model runs as.

    Attributes
    ----------
    default : Choice
        Of attentions that are not named.
    by_name : mapping of attention's name to Choice
    calibrated : mapping of attention's name to Calibrated
    model : str
        `Model.fingerprint` of the model the plan was made for; empty: of any that has the names.
    max_error : float, optional
        What was asked of the calibration. At lengths that it saw nothing near to, heads whose estimated error is above
        it are computed exactly.
    """

    default: Choice = field(default_factory=Choice)
    by_name: Mapping[str, Choice] = field(default_factory=dict)
    calibrated: Mapping[str, Calibrated] = field(default_factory=dict)
    model: str = ""
    max_error: float | None = None

    def __post_init__(self) -> None:
        parts: list[tuple[str, object, type]] = [("default", self.default, Choice)]
        parts += [(f"by_name[{name!r}]", value, Choice) for name, value in self.by_name.items()]
        parts += [(f"calibrated[{name!r}]", value, Calibrated) for name, value in self.calibrated.items()]
        for name, value, kind in parts:
            if not isinstance(value, kind):
                raise DTypeError(f"{name} of Plan must be a {kind.__name__}, got {value!r:.100}; Plan.of reads names")

    def choices(self, name: str, n_queries: int, n_keys: int) -> tuple[Choice, ...]:
        """What the attention of this name runs as at these lengths.

        At a length that no class tells of it is the nearest's choices, with the plan's bound as their ``max_error``.
        """
        if name not in self.calibrated:
            return (self.by_name.get(name, self.default),)
        n_tokens = max(n_queries, n_keys)
        nearest = self.calibrated[name].nearest(n_tokens)
        return nearest.choices if nearest.tells_of(n_tokens) else tuple(map(self._checked, nearest.choices))

    def _checked(self, choice: Choice) -> Choice:
        """With a limit of the error, estimated in the run."""
        if self.max_error is None or choice.method == "exact" or "max_error" in choice.parameters:
            return choice
        return replace(choice, parameters={**choice.parameters, "max_error": self.max_error})

    def parts(
        self, name: str, n_heads: int, n_kv_heads: int, n_queries: int, n_keys: int
    ) -> list[tuple[slice, str, dict]]:
        """The calls that make one attention.

        Parameters
        ----------
        name : str
        n_heads, n_kv_heads, n_queries, n_keys : int

        Returns
        -------
        list of (slice of the heads of keys, method, parameters)
            Heads of one choice are one slice where they are evenly spaced, else several: a slice is read in place.

        Raises
        ------
        ArgumentError
            If the plan was made for another number of heads, or parts heads that share keys.

        Examples
        --------
        >>> plan = Plan.of({"method": "coclustered", "cluster_factor": 2.5})
        >>> plan.parts("any", 6, 6, 4096, 4096)
        [(slice(0, 6, 1), 'coclustered', {'n_query_clusters': 192})]
        """
        known = self.calibrated.get(name)
        if known is not None and known.n_heads != n_heads:
            raise ArgumentError(f"the plan has {known.n_heads} heads for attention {name!r}, the model has {n_heads}")
        group, parts = n_heads // max(n_kv_heads, 1), []
        for choice in self.choices(name, n_queries, n_keys):
            if choice.heads is None:
                slices = [slice(0, n_kv_heads, 1)]
            else:
                slices = progressions(kv_heads(name, choice.heads, group), 1 if group > 1 else None)
            parts += [(s, choice.method, choice.at(n_queries, n_keys)) for s in slices]
        return parts

    def methods(self, name: str) -> tuple[str, ...]:
        """The methods that the attention of this name runs by, at any length."""
        if name not in self.calibrated:
            return (self.by_name.get(name, self.default).method,)
        classes = self.calibrated[name].classes
        return tuple(dict.fromkeys(choice.method for c in classes for choice in c.choices))

    @classmethod
    def of(cls, attention, names=None, model: str | Sequence[str] = ()) -> Plan:
        """The plan a caller means.

        Parameters
        ----------
        attention : str, dict or Plan
            A method; ``{"method": ..., parameters}``; a dict of attention's name to either, where ``"default"``
            stands for all that are not named (exact if it is left out); or the path of a plan, ending in .json.
        names : sequence of str, optional
            The model's attentions; a name beside these is an error.
        model : str or sequence of str, optional
            The model's fingerprint, or it and those of the models it was made from; a plan for another one is an error.

        Raises
        ------
        ArgumentError
            For a method, a parameter or a name that does not exist, and for a plan made for another model.

        Examples
        --------
        >>> Plan.of({"method": "improved-clustered", "n_clusters": 256}).parts("any", 8, 8, 100, 100)
        [(slice(0, 8, 1), 'improved-clustered', {'n_clusters': 256, 'topk': 32})]
        """
        if isinstance(attention, (str, os.PathLike)) and str(attention).endswith(".json"):
            plan = cls.load(attention)
        elif isinstance(attention, Plan):
            plan = attention
        elif isinstance(attention, Mapping) and "method" not in attention:
            named = {name: choice_of(value) for name, value in attention.items()}
            plan = cls(named.pop("default", Choice()), named)
        else:
            plan = cls(choice_of(attention))
        known = (model,) if isinstance(model, str) else tuple(model)
        if plan.model and any(known) and plan.model not in known:
            raise ArgumentError(
                f"the plan was calibrated for another model (fingerprint {plan.model}, this model's is {known[0]}): "
                "calibrate again, or set the plan's model to '' if its errors are known to hold here too"
            )
        unknown = [] if names is None else [n for n in (*plan.by_name, *plan.calibrated) if n not in names]
        if unknown:
            raise ArgumentError(
                f"attention names {', '.join(map(repr, unknown))}, the model's are {', '.join(names) or 'none'}"
            )
        return plan

    def merge(self, other: Plan) -> Plan:
        """Both plans' length classes; where two overlap, the other's stands.

        Raises
        ------
        ArgumentError
            If the plans are for different models or numbers of heads.
        """
        if self.model and other.model and self.model != other.model:
            raise ArgumentError(f"plans for different models cannot be merged: {self.model} and {other.model}")
        calibrated = dict(self.calibrated)
        for name, theirs in other.calibrated.items():
            mine = calibrated.get(name, Calibrated(theirs.n_heads, ()))
            if mine.n_heads != theirs.n_heads:
                raise ArgumentError(
                    f"attention {name!r} has {mine.n_heads} heads in one plan and {theirs.n_heads} in the other"
                )
            kept = [c for c in mine.classes if not any(_overlap(c, o) for o in theirs.classes)]
            classes = tuple(sorted((*kept, *theirs.classes), key=lambda c: c.shortest))
            calibrated[name] = replace(mine, classes=classes)
        errors = [e for e in (self.max_error, other.max_error) if e is not None]
        return Plan(
            other.default if other.default != Choice() else self.default, {**self.by_name, **other.by_name},
            calibrated, self.model or other.model, max(errors, default=None),
        )  # fmt: skip

    def summary(self) -> str:
        """A table for people.

        Examples
        --------
        >>> print(Plan.of({"default": "coclustered", "layer0": "exact"}).summary())
        attention  tokens  heads  method       error  speed
        layer0     any     all    exact
        (others)   any     all    coclustered
        """
        rows: list[tuple[str, ...]] = [(n, "any", "all", str(c), "", "") for n, c in self.by_name.items()]
        for name, known in self.calibrated.items():
            for c in known.classes:
                length = str(c.shortest) if c.shortest == c.longest else f"{c.shortest}-{c.longest}"
                error = "" if c.error is None else f"{c.error:.4f}"
                speed = "" if c.speedup is None else f"{c.speedup:.1f}x"
                for choice in c.choices:
                    heads = "all" if choice.heads is None else ",".join(map(str, choice.heads))
                    rows.append((name, length, heads, str(choice), error, speed))
                    name = length = error = speed = ""
        if not self.calibrated or self.default != Choice():
            rows.append(("(others)", "any", "all", str(self.default), "", ""))
        return table(rows, ("attention", "tokens", "heads", "method", "error", "speed"))

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps(plain(self), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the plan") -> Plan:
        """The plan of a text that `to_json` gave.

        Raises
        ------
        ModelFormatError
            If it is not one, or was written by a newer pyclattn; ``where`` stands in the message.
        """
        try:
            return cls(**fields(json.loads(text)))
        except PyclattnError as error:
            raise ModelFormatError(f"{where}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ModelFormatError(f"{where}: malformed: {error!r:.200}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan as JSON, whole or not at all.

        Examples
        --------
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "plan.json")
        >>> Plan.of("coclustered").save(path)
        >>> Plan.load(path) == Plan.of("coclustered")
        True
        """
        write_atomically(path, lambda file: file.write(self.to_json().encode()))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Plan:
        """Read a plan.

        Raises
        ------
        ModelFormatError
            If the file cannot be read, is no plan, or was written by a newer pyclattn.
        """
        path = as_path("path", path)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ModelFormatError(f"{path}: more than {MOST_BYTES} bytes, this is no plan")
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelFormatError(f"{path}: cannot be read ({error.strerror or error})") from error
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"{path}: not a plan of pyclattn: {error}") from error
        return cls.from_json(text, str(path))


def _overlap(a: LengthClass, b: LengthClass) -> bool:
    return a.shortest <= b.longest and b.shortest <= a.longest
