"""The compiler's passes, one a file, each from plan to plan and each keeping the function."""
