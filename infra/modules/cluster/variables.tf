variable "project" {
  type = string
}

variable "name" {
  type = string
}

variable "region" {
  type = string
}

variable "network" {
  type = string
}

variable "subnetwork" {
  type = string
}

variable "node_account" {
  description = "E-mail of the account that nodes run as."
  type        = string
}

variable "master_range" {
  description = "Addresses of the control plane."
  type        = string
  default     = "172.16.0.0/28"
}

variable "admin_ranges" {
  description = "Who may reach the Kubernetes API: name to network, Jenkins' among them."
  type        = map(string)

  validation {
    condition     = !contains(values(var.admin_ranges), "0.0.0.0/0")
    error_message = "The Kubernetes API must not be open to the world."
  }
  validation {
    condition     = length(var.admin_ranges) > 0
    error_message = "Name at least one network, else nobody can deploy."
  }
}

variable "channel" {
  type    = string
  default = "REGULAR"
}

variable "nodes" {
  description = "The one pool: web, courier, RabbitMQ, observability."
  type = object({
    machine_type = string
    min          = number
    max          = number
  })

  validation {
    condition     = var.nodes.min <= var.nodes.max
    error_message = "nodes.min must not be above nodes.max."
  }
}

variable "deletion_protection" {
  type    = bool
  default = true
}
