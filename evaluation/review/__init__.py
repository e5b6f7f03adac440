"""A page in the browser to look at cases: a grid, three planes and 3D, decisions, and a test with blinded readers.

``cases`` lists what a folder holds, ``server`` answers the page, ``serving`` runs it; the page itself lies in ``page/``
and draws with NiiVue. What readers decided is measured in ``reviewers`` and ``reader_test``.
"""
