"""Pictures to look at: slices with contours, the preview of a case, the contact sheet of a cohort."""
