//! Tables: configuration in, writes out.

use super::*;

const V1: &[&str] =
    &["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "rdma", "net_cls", "net_prio", "devices"];
const V2: &[&str] = &["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"];

fn host(v1: &[&str], v2: &[&str]) -> Host {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Host {
        controllers: Controllers { v1: set(v1), v2: set(v2) },
        cpus: Some(CpuList::parse("0-3").unwrap()),
        memory_nodes: Some(CpuList::parse("0").unwrap()),
    }
}

fn run(json: &str, host: &Host, occasion: Occasion) -> Result<Translation, Refusal> {
    translate(&serde_json::from_str(json).unwrap(), host, occasion)
}

/// `controller/file=value`, a question mark behind optional ones.
fn lines(translation: &Translation) -> Vec<String> {
    let line = |write: &Write| {
        let mark = if write.optional { "?" } else { "" };
        format!("{}/{}{mark}={}", write.controller, write.file, write.value)
    };
    translation.writes.iter().map(line).collect()
}

const UPDATE: Occasion =
    Occasion::Update(Current { memory_and_swap_bytes: Some(1000), realtime_period_us: Some(1000) });

#[test]
fn version_1_files_in_their_order() {
    let host = host(V1, &[]);
    for (json, expected) in [
        (
            r#"{"cpu": {"shares": 1024, "quota": 20000, "period": 100000, "burst": 1000, "cpus": "0-1", "mems": "0"}}"#,
            &[
                "cpu/cpu.shares=1024",
                "cpu/cpu.cfs_period_us=100000",
                "cpu/cpu.cfs_quota_us=20000",
                "cpu/cpu.cfs_burst_us=1000",
                "cpuset/cpuset.cpus=0-1",
                "cpuset/cpuset.mems=0",
            ][..],
        ),
        (r#"{"cpu": {"quota": -1, "shares": 0, "period": 0}}"#, &["cpu/cpu.cfs_quota_us=-1"]),
        (r#"{"cpu": {"idle": 1, "shares": 5}}"#, &["cpu/cpu.idle=1"]),
        (
            r#"{"cpu": {"realtimePeriod": 1000000, "realtimeRuntime": 500}}"#,
            &["cpu/cpu.rt_period_us=1000000", "cpu/cpu.rt_runtime_us=500"],
        ),
        (r#"{"cpu": {}}"#, &[]),
        (
            r#"{"memory": {"limit": 1000, "swap": 2000, "reservation": 500, "kernel": 7, "kernelTCP": 8, "swappiness": 0, "disableOOMKiller": true}}"#,
            &[
                "memory/memory.limit_in_bytes=1000",
                "memory/memory.memsw.limit_in_bytes=2000",
                "memory/memory.soft_limit_in_bytes=500",
                "memory/memory.kmem.tcp.limit_in_bytes=8",
                "memory/memory.kmem.limit_in_bytes?=7",
                "memory/memory.swappiness=0",
                "memory/memory.oom_control=1",
            ],
        ),
        (
            r#"{"memory": {"limit": -1}}"#,
            &["memory/memory.limit_in_bytes=-1", "memory/memory.memsw.limit_in_bytes?=-1"],
        ),
        (
            r#"{"memory": {"limit": 1000, "swap": -1}}"#,
            &["memory/memory.limit_in_bytes=1000", "memory/memory.memsw.limit_in_bytes?=-1"],
        ),
        (r#"{"pids": {"limit": 20}}"#, &["pids/pids.max=20"]),
        (r#"{"pids": {"limit": -1}}"#, &["pids/pids.max=max"]),
        (r#"{"pids": {"limit": 0}}"#, &["pids/pids.max=1"]),
        (
            r#"{"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}], "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 300}]}}"#,
            &[
                "blkio/blkio.weight?=500",
                "blkio/blkio.bfq.weight?=500",
                "blkio/blkio.weight_device?=8:0 10",
                "blkio/blkio.bfq.weight_device?=8:0 10",
                "blkio/blkio.throttle.read_bps_device=8:0 600",
                "blkio/blkio.throttle.write_iops_device=8:16 300",
            ],
        ),
        (
            r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
            &[
                "hugetlb/hugetlb.2MB.limit_in_bytes=4194304",
                "hugetlb/hugetlb.2MB.rsvd.limit_in_bytes?=4194304",
            ],
        ),
        (
            r#"{"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]}}"#,
            &["net_cls/net_cls.classid=1048577", "net_prio/net_prio.ifpriomap=eth0 500"],
        ),
        (
            r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 1}}}"#,
            &[
                "rdma/rdma.max=mlx4_0 hca_handle=max hca_object=1",
                "rdma/rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
            ],
        ),
    ] {
        assert_eq!(lines(&run(json, &host, Occasion::Create).unwrap()), expected, "{json}");
    }
}

#[test]
fn version_2_files_in_their_order() {
    let host = host(&[], V2);
    for (json, expected) in [
        (
            r#"{"cpu": {"shares": 1024, "quota": 20000, "period": 100000, "burst": 1000, "cpus": "1,3"}}"#,
            &["/cpu.weight=100", "/cpu.max=20000 100000", "/cpu.max.burst=1000", "/cpuset.cpus=1,3"][..],
        ),
        (r#"{"cpu": {"quota": -1}}"#, &["/cpu.max=max 100000"]),
        (r#"{"cpu": {"period": 50000}}"#, &["/cpu.max=max 50000"]),
        (r#"{"cpu": {"idle": 0, "shares": 2}}"#, &["/cpu.idle=0", "/cpu.weight=1"]),
        (
            r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 500}}"#,
            &["/memory.swap.max=500", "/memory.max=1000", "/memory.low=500"],
        ),
        (r#"{"memory": {"limit": 1000, "swap": 1000}}"#, &["/memory.swap.max?=0", "/memory.max=1000"]),
        (r#"{"memory": {"limit": -1}}"#, &["/memory.swap.max?=max", "/memory.max=max"]),
        (r#"{"memory": {"limit": 1000}}"#, &["/memory.max=1000"]),
        (r#"{"pids": {"limit": -1}}"#, &["/pids.max=max"]),
        (
            r#"{"blockIO": {"weight": 10, "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}}"#,
            &["/io.bfq.weight?=10", "/io.weight?=1", "/io.max=8:0 riops=max"],
        ),
        (
            r#"{"hugepageLimits": [{"pageSize": "1GB", "limit": -1}]}"#,
            &["/hugetlb.1GB.max=max", "/hugetlb.1GB.rsvd.max?=max"],
        ),
        (
            r#"{"pids": {"limit": 9}, "unified": {"pids.max": "7", "memory.high": "1", "io.max": "8:0 rbps=1\n8:16 rbps=2", "cgroup.max.depth": "3"}}"#,
            &[
                "/pids.max=9",
                "/cgroup.max.depth=3",
                "/io.max=8:0 rbps=1",
                "/io.max=8:16 rbps=2",
                "/memory.high=1",
                "/pids.max=7",
            ],
        ),
    ] {
        assert_eq!(lines(&run(json, &host, Occasion::Create).unwrap()), expected, "{json}");
    }
}

#[test]
fn a_hybrid_host_takes_each_controller_where_it_is() {
    let host = host(&["memory", "pids"], &["hugetlb"]);
    let json = r#"{"memory": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]}"#;
    assert_eq!(
        lines(&run(json, &host, Occasion::Create).unwrap()),
        ["memory/memory.limit_in_bytes=5", "/hugetlb.2MB.max=2097152", "/hugetlb.2MB.rsvd.max?=2097152"]
    );
}

#[test]
fn the_layout_says_where_controllers_are() {
    let hybrid = cofferdam_plan::HostFeatures::sample_v1();
    let controllers = Controllers::from(&hybrid.cgroups);
    assert!(controllers.v1.contains("memory") && controllers.v1.contains("blkio"));
    assert!(controllers.v2.contains("hugetlb") && !controllers.v2.contains("io") && !controllers.is_v2());
    let modern = Controllers::from(&cofferdam_plan::HostFeatures::sample().cgroups);
    assert!(modern.is_v2() && modern.v2.contains("io"));
    assert_eq!(Controllers::from(&CgroupLayout::None), Controllers::default());
}

#[test]
fn an_update_writes_what_holds_together_in_the_order_the_kernel_takes() {
    let host = host(V1, &[]);
    for (json, expected) in [
        (
            r#"{"memory": {"limit": 800, "swap": 900}}"#,
            ["memory/memory.limit_in_bytes=800", "memory/memory.memsw.limit_in_bytes=900"],
        ),
        (
            r#"{"memory": {"limit": 1500, "swap": 2000}}"#,
            ["memory/memory.memsw.limit_in_bytes=2000", "memory/memory.limit_in_bytes=1500"],
        ),
        (
            r#"{"memory": {"limit": 1500, "swap": -1}}"#,
            ["memory/memory.memsw.limit_in_bytes?=-1", "memory/memory.limit_in_bytes=1500"],
        ),
        (
            r#"{"memory": {"limit": -1}}"#,
            ["memory/memory.memsw.limit_in_bytes?=-1", "memory/memory.limit_in_bytes=-1"],
        ),
    ] {
        assert_eq!(lines(&run(json, &host, UPDATE).unwrap()), expected, "{json}");
    }
    let modern = self::host(&[], V2);
    for (json, host, expected) in [
        (
            r#"{"cpu": {"quota": 5000, "period": 5000}}"#,
            &host,
            &["cpu/cpu.cfs_quota_us=-1", "cpu/cpu.cfs_period_us=5000", "cpu/cpu.cfs_quota_us=5000"][..],
        ),
        (
            r#"{"cpu": {"quota": 5000, "burst": 4000}}"#,
            &host,
            &["cpu/cpu.cfs_burst_us=0", "cpu/cpu.cfs_quota_us=5000", "cpu/cpu.cfs_burst_us=4000"],
        ),
        (
            r#"{"cpu": {"quota": 5000, "burst": 4000}}"#,
            &modern,
            &["/cpu.max.burst=0", "/cpu.max=5000 100000", "/cpu.max.burst=4000"],
        ),
        (
            r#"{"cpu": {"quota": -1, "burst": 4000}}"#,
            &modern,
            &["/cpu.max=max 100000", "/cpu.max.burst=4000"],
        ),
        (
            r#"{"cpu": {"realtimePeriod": 1001, "realtimeRuntime": 9}}"#,
            &host,
            &["cpu/cpu.rt_period_us=1001", "cpu/cpu.rt_runtime_us=9"],
        ),
        (
            r#"{"cpu": {"realtimePeriod": 999, "realtimeRuntime": 9}}"#,
            &host,
            &["cpu/cpu.rt_runtime_us=9", "cpu/cpu.rt_period_us=999"],
        ),
    ] {
        assert_eq!(lines(&run(json, host, UPDATE).unwrap()), expected, "{json}");
    }
    let checked = run(r#"{"memory": {"limit": 800, "checkBeforeUpdate": true}}"#, &host, UPDATE).unwrap();
    assert_eq!(checked.usage_must_be_below_bytes, Some(800));
}

#[test]
fn what_cannot_work_is_refused_with_its_place() {
    let (v1, v2) = (host(V1, &[]), host(&[], V2));
    for (json, pointer) in [
        (r#"{"cpu": {"quota": 999}}"#, "/cpu/quota"),
        (r#"{"cpu": {"period": 999}}"#, "/cpu/period"),
        (r#"{"cpu": {"period": 1000001}}"#, "/cpu/period"),
        (r#"{"cpu": {"quota": 2000, "burst": 3000}}"#, "/cpu/burst"),
        (r#"{"cpu": {"idle": 2}}"#, "/cpu/idle"),
        (r#"{"cpu": {"cpus": "0-4"}}"#, "/cpu/cpus"),
        (r#"{"cpu": {"cpus": "x"}}"#, "/cpu/cpus"),
        (r#"{"cpu": {"cpus": ","}}"#, "/cpu/cpus"),
        (r#"{"cpu": {"mems": "1"}}"#, "/cpu/mems"),
        (r#"{"memory": {"limit": -2}}"#, "/memory/limit"),
        (r#"{"memory": {"limit": 2000, "swap": 1000}}"#, "/memory/swap"),
        (r#"{"memory": {"swap": 1000}}"#, "/memory/swap"),
        (r#"{"memory": {"limit": 1, "swappiness": 101}}"#, "/memory/swappiness"),
        (r#"{"blockIO": {"weight": 9}}"#, "/blockIO/weight"),
        (r#"{"blockIO": {"weight": 1001}}"#, "/blockIO/weight"),
        (
            r#"{"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 0, "rate": 1}]}}"#,
            "/blockIO/throttleReadBpsDevice/0",
        ),
        (r#"{"hugepageLimits": [{"pageSize": "2MB/../x", "limit": 1}]}"#, "/hugepageLimits/0/pageSize"),
        (r#"{"hugepageLimits": [{"pageSize": "02MB", "limit": 1}]}"#, "/hugepageLimits/0/pageSize"),
        (r#"{"hugepageLimits": [{"pageSize": "MB", "limit": 1}]}"#, "/hugepageLimits/0/pageSize"),
        (r#"{"rdma": {"a b": {"hcaHandles": 3}}}"#, "/rdma/a b"),
    ] {
        for host in [&v1, &v2] {
            let refusal = run(json, host, Occasion::Create).unwrap_err();
            assert!(
                refusal.to_string().starts_with(&format!("/linux/resources{pointer}: ")),
                "{json}: {refusal}"
            );
        }
    }
    for (json, host, pointer) in [
        (r#"{"unified": {"memory.high": "1"}}"#, &v1, "/unified"),
        (r#"{"unified": {"memory/../x.y": "1"}}"#, &v2, "/unified/memory~1..~1x.y"),
        (r#"{"unified": {"plain": "1"}}"#, &v2, "/unified/plain"),
        (r#"{"unified": {"misc.max": "1"}}"#, &v2, "/unified/misc.max"),
        (r#"{"network": {"classID": 1}}"#, &v2, "/network/classID"),
        (r#"{"cpu": {"realtimeRuntime": 1}}"#, &v2, "/cpu/realtimeRuntime"),
        (r#"{"pids": {"limit": 1}}"#, &Host::default(), "/pids"),
    ] {
        let refusal = run(json, host, Occasion::Create).unwrap_err();
        assert!(
            refusal.to_string().starts_with(&format!("/linux/resources{pointer}: ")),
            "{json}: {refusal}"
        );
    }
}

#[test]
fn what_version_2_has_no_words_for_is_listed() {
    let host = host(&[], V2);
    let json = r#"{"memory": {"limit": 1000, "swappiness": 10, "kernelTCP": 5, "disableOOMKiller": true}}"#;
    let ignored: Vec<_> =
        run(json, &host, Occasion::Create).unwrap().ignored.into_iter().map(|one| one.pointer).collect();
    assert_eq!(
        ignored,
        [
            "/linux/resources/memory/kernelTCP",
            "/linux/resources/memory/swappiness",
            "/linux/resources/memory/disableOOMKiller"
        ]
    );
}

#[test]
fn every_write_says_why() {
    let host = host(V1, &[]);
    let json = r#"{"cpu": {"shares": 7, "cpus": "0"}, "memory": {"limit": -1}, "blockIO": {"weight": 10}}"#;
    for write in run(json, &host, Occasion::Create).unwrap().writes {
        assert!(write.why.starts_with("/linux/resources/"), "{write:?}");
        let op = CgroupWrite::from(&write);
        assert_eq!((op.file, op.value, op.optional), (write.file, write.value, write.optional));
    }
}
