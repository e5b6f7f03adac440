"""Where the label map of a case comes from: planted lesions, a bank, mask networks, or maps drawn as they are given."""
