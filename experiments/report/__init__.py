"""From result files to what people read: tables, rows for pandas, pictures. Nothing here measures anything.

    python -m experiments.report            # rewrites them
    python -m experiments.report --check    # says which are stale
"""
