"""Record attempts in the driver: an attempt's files are put in place, then its line is written.

A line in the manifest means that the files are whole and where they belong. A worker that was taken for lost may hand
in an attempt that another has made again meanwhile: it must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from maisi_aug.cohort.folder import CohortFolder
from maisi_aug.cohort.manifest import AttemptRecord, ManifestWriter
from maisi_aug.errors import CohortError
from maisi_aug.generate.writer import explain_disk
from maisi_aug.system.whole_files import flush_folder

ROLES = ("image", "label", "anatomy", "preview")


@dataclass
class Recorder:
    """Records attempts.

    Attributes:
        folder: Folder of the cohort.
        manifest: Open and locked.
        made: The attempts of this run, without the gates' figures.
    """

    folder: CohortFolder
    manifest: ManifestWriter
    made: list[AttemptRecord] = field(default_factory=list)
    _files: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)

    def record(self, attempt: AttemptRecord, scratch: Path) -> bool:
        """Move the files of an attempt to their place and append its line; an attempt that is there is dropped.

        Args:
            attempt: What a worker has made.
            scratch: Folder that its files are in.

        Returns:
            Whether the attempt is new.

        Raises:
            CohortError: The disk is full, the folder cannot be written, which leaves nothing behind, or the same
                attempt was made before to other bytes.
        """
        key, hashes = (attempt.case_index, attempt.attempt), {f.path: f.sha256 for f in attempt.files.values()}
        if key in self._files:
            self._require_same(attempt, self._files[key], hashes)
            for path in hashes:
                (scratch / path).unlink(missing_ok=True)
            return False
        placed: list[Path] = []
        try:
            for path in hashes:
                self._place(scratch / path, self.folder.path / path, placed)
            for place in dict.fromkeys(target.parent for target in placed):
                flush_folder(place)
            self.manifest.append(attempt)
        except OSError as error:
            for target in placed:
                target.unlink(missing_ok=True)
            raise explain_disk(self.folder.path, error) from error
        if attempt.status != "accepted":  # what an accepted attempt left that was made again on another machine
            for role in ROLES:
                self.folder.file_of(role, attempt.case_id).unlink(missing_ok=True)
        self._files[key] = hashes
        self.made.append(attempt.keep_figures(()))
        return True

    @staticmethod
    def _place(source: Path, target: Path, placed: list[Path]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        placed.append(target)
        source.replace(target)

    def _require_same(self, attempt: AttemptRecord, before: dict[str, str], now: dict[str, str]) -> None:
        if before != now:
            different = next(path for path in {**before, **now} if before.get(path) != now.get(path))
            raise CohortError(
                f"{self.folder.path}: {attempt.case_id} was drawn twice with different results: {different} differ. "
                "Use devices of one kind, with the same number of threads each."
            )
