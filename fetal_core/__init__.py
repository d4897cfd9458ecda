"""Fetal anatomical planes in ultrasound images: data, training, evaluation, inference."""
