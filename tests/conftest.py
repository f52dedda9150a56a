"""What every test can rely on."""

import signal

# A shell's background jobs start with SIGINT ignored, and so would every process the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
