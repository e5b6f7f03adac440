"""DICOM: CT series and segmentations of synthetic cases."""
