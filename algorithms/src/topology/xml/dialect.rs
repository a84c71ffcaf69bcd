//! Recognizes files of other programs, so that an error can name them.

use roxmltree::Node;

/// What a file is, if it is not NCCL's.
pub(super) fn of_another_program(root: Node<'_, '_>) -> Option<&'static str> {
    match root.tag_name().name() {
        "system" => {
            let foreign = root.descendants().find_map(|node| match node.tag_name().name() {
                "xgmi" => Some("RCCL's topology file (with xgmi links)"),
                _ if node.has_attribute("gcn") => Some("RCCL's topology file (with AMD's GPUs)"),
                _ => None,
            });
            // RCCL's files say so by the version, too.
            let version_2 = root.attribute("version") == Some("2");
            foreign.or_else(|| version_2.then_some("RCCL's topology file (version 2)"))
        }
        "graphs" => Some("NCCL's graph file (NCCL_GRAPH_FILE)"),
        "topology" => Some("hwloc's topology file (lstopo)"),
        "topologydiff" => Some("hwloc's file of differences"),
        "algo" => Some("an algorithm of MSCCL"),
        "capabilities" | "domain" => Some("libvirt's description of a machine"),
        "nvidia_smi_log" => Some("the log of nvidia-smi"),
        "node" | "list" => Some("the output of lshw"),
        _ => None,
    }
}
