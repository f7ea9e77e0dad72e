//! AssumeRole through STS.
