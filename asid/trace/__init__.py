"""Readers of recordings of VM exits: ftrace, trace-cmd report and perf script text, and perf kvm stat tables."""
