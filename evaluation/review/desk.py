"""The state behind the page: the cases so far, what was decided on them, and what changed since a page last asked."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from maisi_aug.cohort.review import (
    REVIEW_NAME,
    CaseKey,
    Choice,
    Decision,
    Review,
    append_decision,
    now,
    read_on,
)
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.review.cases import CaseSource, Partners, Predictions, ShownCase, list_labels
from maisi_aug.evaluation.review.volumes import FolderFiles
from maisi_aug.integrations.reading.cohort_source import is_being_written

Json = dict[str, Any]


class Desk:
    """State of the viewer: cases and decisions of one folder, for any number of pages."""

    def __init__(
        self,
        source: CaseSource,
        files: FolderFiles,
        partners: Partners,
        *,
        reviewer: str = "",
        may_decide: bool = True,
        predictions: Predictions | None = None,
    ) -> None:
        """Create the desk; nothing is read yet.

        Args:
            source: Lists the cases.
            files: Access to their files.
            partners: Finds what they are looked at beside.
            reviewer: Name of the reviewer; may be empty.
            may_decide: Whether decisions can be saved in the folder.
            predictions: Predictions of a segmenter on the cases.
        """
        self.source, self.files, self.partners = source, files, partners
        self.reviewer, self.may_decide, self._predictions = reviewer, may_decide, predictions
        self._lock = threading.Lock()
        self._cases: dict[str, ShownCase] = {}
        self._key_of: dict[CaseKey, str] = {}
        self._changed: dict[str, int] = {}
        self._groups: dict[tuple[int, str], list[str]] = {}
        self._review = Review()
        self._decisions: dict[CaseKey, list[Decision]] = {}
        self._revision = 0

    @property
    def _review_path(self) -> Path:
        return self.source.path / REVIEW_NAME

    def refresh(self) -> None:
        """Read what was added to the folder and to the review since the last call.

        Raises:
            CohortError: A line cannot be read.
        """
        with self._lock:
            if new := self.source.read_on():
                self._revision += 1
                for case in new:
                    self._cases[case.key] = case
                    self._key_of[case.case] = case.key
                    self._changed[case.key] = self._revision
                    if case.twin is not None and case.key not in self._groups.get(case.twin[:2], ()):
                        self._groups.setdefault(case.twin[:2], []).append(case.key)
            if self.may_decide and read_on(self._review, self._review_path):
                self._revision += 1
                standing = self._review.standing()
                for key in self._decisions.keys() | standing.keys():
                    if self._decisions.get(key) != standing.get(key) and key in self._key_of:
                        self._changed[self._key_of[key]] = self._revision
                self._decisions = standing

    def state_since(self, revision: int) -> Json:
        """Return the changes since a revision, as JSON types for the viewer's page.

        Raises:
            CohortError: A line of the folder cannot be read.
        """
        self.refresh()
        with self._lock:
            rows = [self._row(self._cases[key]) for key, changed in self._changed.items() if changed > revision]
            return {
                "revision": self._revision,
                "rows": rows,
                "total": len(self._cases),
                "title": self.source.title,
                "path": str(self.source.path),
                "kind": self.source.kind,
                "reviewer": self.reviewer,
                "mayDecide": self.may_decide,
                "isGrowing": bool(self.source.kind == "cohort" and is_being_written(self.source.path)),
                "beside": None if self.partners.source is None else str(self.partners.source.path),
            }

    def _row(self, case: ShownCase) -> Json:
        found = self._decisions.get(case.case, [])
        mine = next((decision for decision in found if decision.reviewer == self.reviewer), None)
        return {
            **case.to_row(),
            "mine": None if mine is None else {"choice": mine.choice, "reason": mine.reason},
            "others": [
                {"choice": decision.choice, "reason": decision.reason, "reviewer": decision.reviewer}
                for decision in found
                if decision is not mine
            ],
        }

    def list_accepted(self) -> list[ShownCase]:
        """Return the cases that gates accepted and no reviewer rejected; for folders without verdicts, all cases.

        Raises:
            CohortError: A line of the folder cannot be read.
        """
        self.refresh()
        rejections = self._review.rejections()
        good = (case for case in self._cases.values() if case.status in ("accepted", "given"))
        return [case for case in good if case.case not in rejections]

    def require(self, key: str) -> ShownCase:
        """Return a case by its key.

        Raises:
            EvaluationError: There is no such case.
        """
        case = self._cases.get(key)
        if case is None:
            raise EvaluationError(f"{key[:80]!r}: there is no such case in this folder.")
        return case

    def describe(self, key: str) -> Json:
        """Return everything about one case: volumes, labels, lesions, verdicts, origin, and what to show next to it.

        Raises:
            EvaluationError: There is no such case.
        """
        case = self.require(key)
        beside = self._find_twins(case)
        if (found := self.partners.find(case)) is not None:
            title, other = found
            beside.insert(0, {"title": f"{title}: {other.case.case_id}", **self._volumes(other.key, "beside")})
        own = self._volumes(key, "file")
        if self._predictions is not None and (predicted := self._predictions.find(case)) is not None:
            volumes = {**own["volumes"], "label": f"predicted/{key}/label.nii.gz"}
            volumes.pop("anatomy", None)
            labels = list_labels(predicted, self.source.vocabulary)
            beside.insert(0, {"title": "prediction", "volumes": volumes, "labels": labels})
        return {
            **self._row(case),
            **own,
            "lesions": list(case.lesions),
            "verdicts": list(case.verdicts),
            "origin": dict(case.origin),
            "beside": beside,
        }

    def _find_twins(self, case: ShownCase) -> list[Json]:
        group = () if case.twin is None else self._groups.get(case.twin[:2], ())
        twins = (self._cases[key] for key in group if key != case.key)
        return [
            {"title": f"twin {twin.case.case_id}, {twin.twin[1]} {twin.twin[2]}", **self._volumes(twin.key, "file")}
            for twin in twins
            if twin.twin is not None and "image" in twin.files
        ]

    def _volumes(self, key: str, root: str) -> Json:
        case = self.require(key) if root == "file" else self.require_beside(key)
        source = self.source if root == "file" else self.partners.source
        assert source is not None
        roles = [role for role in ("image", "anatomy", "label") if role in case.files]
        return {
            "volumes": {role: f"{root}/{key}/{self.files.name_of(case, role)}" for role in roles},
            "labels": list_labels(case, source.vocabulary),
        }

    def require_beside(self, key: str) -> ShownCase:
        """Return a case of the reference folder by its key.

        Raises:
            EvaluationError: There is no such case.
        """
        found = next((case for case in self.partners.cases if case.key == key), None)
        if found is None:
            raise EvaluationError(f"{key[:80]!r}: there is no such case in the reference.")
        return found

    def require_prediction(self, key: str) -> ShownCase:
        """Return the prediction of a case by its key.

        Raises:
            EvaluationError: There is no such prediction.
        """
        found = None if self._predictions is None else self._predictions.find(self.require(key))
        if found is None:
            raise EvaluationError(f"{key[:80]!r}: this case has no prediction.")
        return found

    def decide(self, key: str, choice: Choice, reason: str) -> Json:
        """Save a reviewer's decision about a case, and return the new state of the case.

        Args:
            key: Key of the case and attempt.
            choice: ``accept``, ``reject``, or ``undo`` to take the last decision back.
            reason: Words of the reviewer; may be empty.

        Raises:
            EvaluationError: There is no such case, or the folder cannot be reviewed.
            CohortError: The disk is full; nothing of the decision is saved.
        """
        case = self.require(key)
        self._require_may_decide()
        append_decision(
            self.source.path,
            Decision(case.case.case_id, case.case.attempt, choice, reason.strip(), self.reviewer, now()),
        )
        self.refresh()
        return {"key": key}

    def undo(self) -> Json:
        """Revoke the reviewer's last valid decision.

        Returns:
            The case that the decision was about; None if there was none.

        Raises:
            CohortError: The disk is full; the decision is still valid.
        """
        self._require_may_decide()
        self.refresh()
        last = self._review.last_of(self.reviewer)
        if last is None:
            return {"key": None}
        append_decision(self.source.path, Decision(last.case_id, last.attempt, "undo", "", self.reviewer, now()))
        self.refresh()
        return {"key": self._key_of.get(last.key)}

    def _require_may_decide(self) -> None:
        if not self.may_decide:
            raise EvaluationError("Decisions: a plan cannot be reviewed, only a cohort. Generate it first.")
