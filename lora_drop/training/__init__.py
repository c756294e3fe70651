"""Training of adapters: text in, a bank out that serves every schedule.

What other rooms use: `settings.TrainSettings` and `TrainJob` (without torch), `train.train`, the text of
`data.read_texts` and `to_windows`, and `student.student_states`, the parallel pass through a schedule.
"""
