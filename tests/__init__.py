"""The tests. Like every process that the project starts, they wait passively: this runs before torch is loaded."""

from kdcdiff.process import wait_passively

wait_passively()
