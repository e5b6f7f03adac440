"""Pictures for people: slices with contours, the preview of a case, the contact sheet of a cohort."""
