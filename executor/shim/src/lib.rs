//! What outlives the agent: parent of the task, its stdio and its exit status.
