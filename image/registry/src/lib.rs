//! Distribution-spec client: pull, credentials, retry.
