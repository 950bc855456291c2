"""The profile `torch`: plain torch operators on any device. It promises no bits; it is what others do."""
