"""The recipe of the shipped model: what it is fed, what it is told beside the answers, and how it is trained."""
