//! The structures have the layout of the system's header, where there is one.

use std::mem::offset_of;
use std::process::Command;

use super::*;

/// Calls `$each` with the name of each structure, and with each of these fields of it.
macro_rules! layouts {
    ($($type:ident: $($field:ident)+;)+) => {{
        let mut list = Vec::new();
        $(
            let name = stringify!($type);
            list.push((format!("sizeof(struct {name})"), size_of::<$type>()));
            $(
                // Rust has another name where C has a word of Rust's.
                let field = stringify!($field).trim_end_matches('_');
                let offset = offset_of!($type, $field);
                list.push((format!("offsetof(struct {name}, {field})"), offset));
            )+
        )+
        list
    }};
}

fn layouts() -> Vec<(String, usize)> {
    layouts! {
        ibv_device: _ops node_type transport_type name dev_name dev_path ibdev_path;
        ibv_context_ops: alloc_mw bind_mw dealloc_mw poll_cq req_notify_cq post_srq_recv post_send
            post_recv _compat_async_event;
        ibv_context: device ops cmd_fd async_fd num_comp_vectors mutex abi_compat;
        verbs_context: query_port advise_mr create_cq_ex query_device_ex create_qp_ex get_srq_num
            create_srq_ex sz context;
        ibv_device_attr: fw_ver node_guid max_mr_size max_qp_wr atomic_cap max_srq phys_port_cnt;
        ibv_device_attr_ex: orig_attr odp_caps device_cap_flags_ex tm_caps phys_port_cnt_ex;
        ibv_port_attr: state active_mtu gid_tbl_len lid link_layer flags port_cap_flags2;
        ibv_gid_entry: gid gid_index port_num gid_type ndev_ifindex;
        ibv_async_event: element event_type;
        ibv_pd: context handle;
        ibv_mr: context pd addr length handle lkey rkey;
        ibv_mw: context pd rkey handle type_;
        ibv_mw_bind_info: mr addr length mw_access_flags;
        ibv_mw_bind: wr_id send_flags bind_info;
        ibv_comp_channel: context fd refcnt;
        ibv_cq: context channel cq_context handle cqe mutex cond async_events_completed;
        ibv_cq_ex: context cqe comp_mask status wr_id start_poll end_poll read_opcode
            read_completion_wallclock_ns;
        ibv_cq_init_attr_ex: cqe cq_context channel comp_vector wc_flags comp_mask flags;
        ibv_wc: wr_id status opcode vendor_err byte_len qp_num src_qp wc_flags dlid_path_bits;
        ibv_srq: context srq_context pd handle mutex cond events_completed;
        ibv_srq_init_attr: srq_context attr;
        ibv_qp_cap: max_send_wr max_recv_wr max_send_sge max_recv_sge max_inline_data;
        ibv_qp_init_attr: qp_context send_cq recv_cq srq cap qp_type sq_sig_all;
        ibv_qp_init_attr_ex: cap comp_mask pd create_flags rwq_ind_tbl send_ops_flags;
        ibv_qp: context qp_context pd send_cq recv_cq srq handle qp_num state qp_type mutex cond;
        ibv_qp_ex: qp_base comp_mask wr_id wr_flags wr_atomic_cmp_swp wr_rdma_write wr_send
            wr_set_inline_data wr_set_sge wr_start wr_complete wr_abort wr_atomic_write;
        ibv_qp_attr: qp_state path_mtu qkey rq_psn dest_qp_num cap ah_attr pkey_index port_num
            timeout retry_cnt rnr_retry rate_limit;
        ibv_ah_attr: grh dlid sl is_global port_num;
        ibv_global_route: dgid flow_label sgid_index hop_limit traffic_class;
        ibv_ah: context pd handle;
        ibv_grh: version_tclass_flow paylen next_hdr hop_limit sgid dgid;
        ibv_sge: addr length lkey;
        ibv_send_wr: wr_id next sg_list num_sge opcode send_flags wr qp_type;
        ibv_recv_wr: wr_id next sg_list num_sge;
        ibv_data_buf: addr length;
        ibv_ece: vendor_id options comp_mask;
    }
}

#[test]
fn structures_have_the_layout_of_the_header() {
    if !std::path::Path::new("/usr/include/infiniband/verbs.h").exists() {
        eprintln!("skipped: there is no infiniband/verbs.h (Debian: libibverbs-dev)");
        return;
    }
    let mut source = String::from("#include <infiniband/verbs.h>\n#include <stddef.h>\n");
    for (expression, value) in layouts() {
        source += &format!("_Static_assert({expression} == {value}, \"{expression}\");\n");
    }
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-fsyntax-only", "-x", "c", "-"]);
    compiler.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut compiler = compiler.spawn().expect("a C compiler");
    let mut input = compiler.stdin.take().expect("it was piped");
    std::io::Write::write_all(&mut input, source.as_bytes()).expect("the compiler reads");
    drop(input);
    let output = compiler.wait_with_output().expect("the compiler ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
