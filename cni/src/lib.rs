//! CNI: the caller side, the plugin side.
